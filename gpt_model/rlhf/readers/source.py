"""HumanSource: where demonstrations, comparisons and prompts come from, as data: a location, and
the form that its rows have. How rows become dialogues is `record_readers.py`'s.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gpt_model.data.formats import RowFormat
from gpt_model.data.location import SourceEntry
from gpt_model.finetuning.entry import TaskEntry
from gpt_model.strict import Bounds, Count, Misfit, Whole

Form = Literal[
    "messages",
    "instruction",
    "conversations",
    "transcript",
    "text",
    "pairs",
    "rankings",
    "rated",
    "tree",
]
Purpose = Literal["demonstrations", "comparisons", "prompts"]

# form -> part of a row that it reads -> the column it is in unless `columns` says otherwise; ""
# where it is read only if `columns` names it
COLUMNS: dict[str, dict[str, str]] = {
    "messages": {"messages": "messages"},
    "instruction": {"prompt": "instruction", "input": "", "response": "response"},
    "conversations": {"conversations": "conversations"},
    "transcript": {"text": "text"},
    "text": {"text": "text"},
    "pairs": {"prompt": "", "chosen": "chosen", "rejected": "rejected", "tie": ""},
    "rankings": {
        "prompt": "prompt",
        "responses": "responses",
        "text": "",
        "ranks": "",
        "scores": "",
        "choice": "",
    },
    "rated": {"text": "text", "rating": "rating"},
    "tree": {
        "id": "message_id",
        "parent": "parent_id",
        "text": "text",
        "role": "role",
        "rank": "rank",
    },
}
VOTE_COLUMNS = {  # of the chat's files: `votes.py`
    "prompt": "messages",
    "chosen": "chosen",
    "rejected": "rejected",
    "tie": "tie",
}
JOINED = {  # form -> parts that may be in several columns
    "instruction": ("prompt", "input", "response"),
    "text": ("text",),
    "rated": ("text",),
    "rankings": ("prompt",),
}
RANKED_BY = ("ranks", "scores", "choice")  # parts of rankings, one of which says what is better
FORMS_FOR: dict[Purpose, tuple[str, ...]] = {
    "demonstrations": ("messages", "instruction", "conversations", "transcript", "text", "tree"),
    "comparisons": ("pairs", "rankings", "rated", "tree"),
    "prompts": (
        "messages",
        "instruction",
        "conversations",
        "transcript",
        "text",
        "pairs",
        "rankings",
        "tree",
    ),
}
FIELD_FORMS = {"instruction": ("text", "rated", "rankings"), "opening": ("text",)}


class HumanSource(SourceEntry):
    """One entry of `sources`: a package's files, local files, a data set of the hub, a task of the
    catalogue, or the votes.
    """

    LOCATIONS: ClassVar = ("package", "path", "hub", "task", "votes")

    task: str | None = Field(
        default=None,
        description="of the catalogue: its labelled training examples in instruction form",
    )
    entry: TaskEntry | None = Field(
        default=None, description="the task's, written out; filled in when a build is planned"
    )
    votes: bool = Field(
        default=False, description="the votes that were cast in the chat on this store"
    )

    form: Form | None = Field(
        default=None, description="what a row is: docs/papers/alignment-data.md"
    )
    columns: dict[str, str | list[str]] = Field(
        default_factory=dict, description="the form's parts -> where they stand in a row, dotted"
    )
    header: list[str] | None = Field(
        default=None, description="column names, for a csv or tsv file whose first line is a row"
    )
    format: RowFormat | None = Field(default=None, description="where the name does not end in it")
    instruction: str | None = Field(
        default=None,
        min_length=1,
        description="of text and rated: what the user says, in every dialogue; of rankings: what "
        "stands before each prompt",
    )
    opening: Count | None = Field(
        default=None,
        description="of text: a prompt ends with so many words of it, said by the assistant",
    )
    ranked: Annotated[int, Bounds(2, 16, "every pair of them is a comparison")] = Field(
        default=4, description="of rated: so many texts are set against each other"
    )
    part: tuple[Whole, Whole] | None = Field(
        default=None,
        description="[from, to), of 0 to 1: which share of its rows is taken, by what they say; "
        "shares apart have no row in common",
    )
    limit: Count | None = Field(default=None, description="at most so many, a seeded subset")
    show_text: bool = Field(
        default=True,
        description="false where the licence does not cover the text: few short samples are shown",
    )

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("part"), list):
            return {
                **values,
                "part": tuple(
                    float(share) if isinstance(share, int) else share for share in values["part"]
                ),
            }
        return values

    @model_validator(mode="after")
    def _form_is_whole(self) -> HumanSource:
        if self.form is None and not (self.task or self.votes):
            raise ValueError(f"`form` is missing: what a row is, one of {', '.join(COLUMNS)}")
        if self.form is not None and (self.task or self.votes):
            raise Misfit(f"a {'task' if self.task else 'vote'} has its own: leave it out", "form")
        if self.form in ("text", "rated") and not self.instruction:
            raise ValueError(
                f"`instruction` is missing: what the user says where form {self.form} has only "
                "the answer"
            )
        if self.instruction is not None and not self.instruction.strip():
            raise Misfit("it says nothing", "instruction")
        for field, forms in FIELD_FORMS.items():
            if getattr(self, field) is not None and self.form not in forms:
                reader = f"form {self.form}" if self.form else "a source that has its own form"
                raise Misfit(f"{reader} reads none: it goes with {', '.join(forms)}", field)
        if self.part is not None and not 0 <= self.part[0] < self.part[1] <= 1:
            raise Misfit(
                f"{list(self.part)} is no part: give two numbers from 0 to 1, the lower one first",
                "part",
            )
        return self

    @model_validator(mode="after")
    def _columns_fit_the_form(self) -> HumanSource:
        if self.form is None:
            if self.columns:
                raise Misfit("a task and votes have their own: leave it out", "columns")
            return self
        parts = COLUMNS[self.form]
        for part, given in self.columns.items():
            if part not in parts:
                raise Misfit(
                    f"form {self.form} has no part {part!r}: it has {', '.join(parts)}", "columns"
                )
            if not given or not all(given):
                raise Misfit(
                    f"{part!r} names no column: write the name of one, or leave it out", "columns"
                )
            if isinstance(given, list) and part not in JOINED.get(self.form, ()):
                raise Misfit(f"{part!r} is in one column: write its name, not a list", "columns")
        if (
            self.form == "rankings"
            and len(named := [part for part in RANKED_BY if part in self.columns]) != 1
        ):
            raise Misfit(
                f"form rankings needs exactly one of {', '.join(RANKED_BY)}, which says what is "
                f"better; found {' and '.join(named) or 'none'}",
                "columns",
            )
        return self

    def check_serves(self, purpose: Purpose) -> None:
        """Raises ValueError where its form does not serve the purpose."""
        if self.task and purpose != "demonstrations":
            raise ValueError(
                f"source {self.name!r} is a task, which makes demonstrations, not {purpose}"
            )
        if self.votes and purpose != "comparisons":
            raise ValueError(
                f"source {self.name!r} is votes, which make comparisons, not {purpose}"
            )
        if self.form and self.form not in FORMS_FOR[purpose]:
            raise ValueError(
                f"source {self.name!r} has form {self.form}, which makes no {purpose}: there are "
                f"{', '.join(FORMS_FOR[purpose])}"
            )
        if purpose == "prompts" and self.form == "text" and self.opening is None:
            raise ValueError(
                f"source {self.name!r} makes prompts of texts: add `opening`, how many of a "
                "text's words a prompt ends with"
            )

    def column(self, part: str) -> list[str]:
        """The columns of a part of the form: dotted names, several where they are joined; none
        where it is not read.
        """
        if self.votes:
            return [VOTE_COLUMNS[part]]
        assert self.form, "a task is read by its entry"
        given = self.columns.get(part, COLUMNS[self.form][part])
        return [name for name in ([given] if isinstance(given, str) else given) if name]
