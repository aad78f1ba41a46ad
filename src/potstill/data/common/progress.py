"""A progress line for work of unknown length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from potstill.errors import printable


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Show `what`, a count and the time on a terminal; yields a function that sets the count."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done: bar.update(task, completed=done)
