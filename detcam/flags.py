"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

TrustFlag = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Load pickled weights whatever they name: runs any code in the file."),
]
