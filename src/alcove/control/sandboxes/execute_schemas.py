"""Bodies of running code in a sandbox."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from alcove.control.api import Body, Text


class Code(Body):
    code: Text = Field(description="Common leading indentation of all lines is removed.")
    language: Text | None = Field(
        default=None,
        description="python, javascript, typescript, bash, r or java, in that language's default "
        "context. Default: python.",
    )
    context_id: Text | None = Field(default=None, description="A context, in place of a language.")
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=60, description="Seconds; then the code is interrupted and exit_code is 124."
    )
    env: dict[Text, Text] | None = Field(
        default=None, description="Environment variables of this execution."
    )


class ExecutionError(BaseModel):
    name: str
    value: str
    traceback: str


class Dropped(BaseModel):
    stdout: int
    stderr: int
    results: int


class Executed(BaseModel):
    stdout: str
    stderr: str
    exit_code: int = Field(description="0; 1 after an error; 124 when its time was over.")
    error: ExecutionError | None
    results: list[dict[str, Any]] = Field(
        description="What it displayed and returned: text, html, png, chart, …; is_main_result."
    )
    execution_count: int | None
    truncated: bool = Field(description="Something was too large for this answer and left out.")
    dropped: Dropped = Field(description="Characters of the texts and results left out.")
