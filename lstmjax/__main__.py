"""``python -m lstmjax``: the program of :mod:`lstmjax.program`."""

from lstmjax.program import main

if __name__ == "__main__":
    main()
