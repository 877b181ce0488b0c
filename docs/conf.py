"""The site: the README, the pages here, the notebooks as they were run, a reference of the API from the docstrings.

``make docs`` builds it. Its source is the whole repository, set up from this folder, so that links from page to page
lead on the site where they lead on a code host.
"""

import ast
import inspect
import sys
import textwrap
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import lstmjax

sys.path.insert(0, str(Path(__file__).parent))  # for the extension that is in this folder

project = "lstmjax"
copyright = "the lstmjax authors"
version = release = lstmjax.__version__
extensions = [
    "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax",
    "myst_nb", "sphinx_copybutton", "formulas",
]  # fmt: skip

root_doc = "docs/index"
include_patterns = ["docs/*", "docs/api/*", "*.md", "benchmarks/README.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "out"]
templates_path = [str(Path(__file__).parent / "_templates")]

nitpicky = True  # a reference that leads nowhere is a warning, but for the types of other libraries
nitpick_ignore_regex = [("py:class", r"(?!lstmjax).*")]

# A page for each module; the template lists what is in the module's __all__ or, without one, what it defines.
autosummary_ignore_module_all = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, as of arguments, not an entry for each
napoleon_use_rtype = False  # what stands before a colon in Returns is no type
highlight_language = "text"  # formulas; an example is known by its >>>
maximum_signature_line_length = 60
smartquotes_action = "D"  # dashes alone: c' is c prime

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_merge_streams = True

copybutton_prompt_text = ">>> |\\.\\.\\. "  # an example is copied without its prompts and without what it prints
copybutton_prompt_is_regexp = True

html_title = "lstmjax"
html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # room for lines of code
html_static_path = [str(Path(__file__).parent / "_static")]
html_css_files = ["wide.css"]
html_copy_source = False
html_additional_pages = {"index": "redirect.html"}  # to the root document, which is in a folder


def is_field(app, what, name, obj, skip, options):
    """Of a class only its own methods and properties get entries: fields are in its docstring, and Flax's in Flax's."""
    method = obj.fget if isinstance(obj, property) else obj
    own = inspect.isfunction(method) and method.__module__.startswith("lstmjax")
    of_a_module = not options  # asked by autosummary
    return True if what == "class" and not (own or of_a_module) else None


def written(obj):
    """The definition of a function or class, as the source has it."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]


def signature_as_written(app, what, name, obj, options, signature, returns):
    """Aliases of types, jaxtyping's annotations and defaults stand as in the source; evaluated they are far longer."""
    if what in ("function", "method"):
        node = written(obj)
        returns = node.returns and ast.unparse(node.returns)
    elif what == "class":
        bases = [base for base in reversed(obj.__mro__) if base.__module__.startswith("lstmjax")]
        body = [node for base in bases for node in written(base).body]
        inits = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        if not inits:  # a named tuple, or a dataclass
            fields = [node for node in body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node)]
            return (f"({', '.join(map(ast.unparse, fields))})" if fields else ""), None
        node, returns = inits[-1], None
    else:
        return None
    if what != "function":
        del node.args.args[0]  # self
    return f"({ast.unparse(node.args)})", returns


def constant_as_described(app, what, name, obj, options, lines):
    """A constant has no docstring of its own; Sphinx looks for one in the package that exports it, not in the file."""
    package, _, constant = name.rpartition(".")
    folder = Path(lstmjax.__file__).parent.joinpath(*package.split(".")[1:])
    for path in folder.glob("*.py") if what == "data" else ():
        described = ModuleAnalyzer.for_file(path, path.stem).find_attr_docs()
        lines[:] = described.get(("", constant), lines)


def alias_unshown(app, domain, objtype, content):
    """What an alias stands for is not spelled out either: its description says it."""
    for paragraph in [p for p in content if objtype == "data" and p.astext().startswith("alias of")]:
        content.remove(paragraph)


def type_elsewhere(app, env, node, contnode):
    """A type's bare name in a signature is looked for in the page's own module; here, in the others."""
    found = env.get_domain("py").resolve_any_xref(env, node["refdoc"], app.builder, node["reftarget"], node, contnode)
    return found[0][1] if len(found) == 1 else None


def source_of(app, module, name):
    """An alias of a type that is Python's own has its source where it is defined here, not in Python."""
    elsewhere = getattr(getattr(sys.modules.get(module), name, None), "__module__", None)
    return module if elsewhere == "builtins" else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", is_field)
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-process-docstring", constant_as_described)
    app.connect("object-description-transform", alias_unshown)
    app.connect("missing-reference", type_elsewhere)
    app.connect("viewcode-follow-imported", source_of)
