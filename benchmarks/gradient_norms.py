"""Does the gradient survive the lag? The main job: ``lstmjax gradients`` as a benchmark, with the same options.

python -m benchmarks.gradient_norms --out out
"""

import sys

from lstmjax.program import main

if __name__ == "__main__":
    main(["gradients", *sys.argv[1:]])
