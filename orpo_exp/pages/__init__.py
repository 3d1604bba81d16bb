"""Pages in HTML, one file each, that need nothing from anywhere: how they look, and what one of a run shows."""

from orpo_exp.pages.document import written_page
from orpo_exp.pages.run import write_run_page

__all__ = ["write_run_page", "written_page"]
