"""What a recipe says of a table of events: who did what when, and which events count (`kind: interactions`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from groundup.config import Section


class Described(Section):
    """A second table that says more of each item, or of each user."""

    path: str
    """The file: CSV, TSV, JSONL or Parquet."""
    key: str
    """The column that names the item, or the user, as the events do."""
    columns: dict[str, str]
    """The columns to carry along: the name in the corpus, and the name in this file."""
    lists: dict[str, str] = Field(default={})
    """For a column whose cells hold several values, what divides them: `{genres: " "}`."""
    separator: str | None = None
    """What divides the columns, if not a comma or a tab."""


class EventColumns(Section):
    """The keys of a source that belong to `kind: interactions`."""

    user: str | None = None
    """In `interactions`, the column that tells who did something."""
    item: str | None = None
    """In `interactions`, the column that tells to what: a film, a product, a page."""
    time: str | None = None
    """In `interactions`, the column that tells when: dates, or numbers that grow. Events of one moment come in the
    order of the file."""
    value: str | None = None
    """In `interactions`, the column with a number for each event, such as a rating."""
    at_least: float | None = None
    """In `interactions`, leave out events whose `value` is below."""
    repeats: Literal["first", "keep"] = "first"
    """In `interactions`, what counts of a user's several events with one item: only the first, or all."""
    row: Literal["user", "event"] = "user"
    """In `interactions`, what a row of the corpus is: a user with all that came before and what came next, or one
    event."""
    about_items: Described | None = None
    """In `interactions`, a table with more of each item; in rows of users a list beside the list of items."""
    about_users: Described | None = None
    """In `interactions`, a table with more of each user."""

    @property
    def says_split(self) -> bool:
        """Whether rows come with the split they belong to."""
        return self.user is not None

    @property
    def event_columns(self) -> list[str]:
        """The columns of the rows that are made of events, beside `text`."""
        own = ["user", "item", "time", *(["value"] if self.value else [])]
        if self.row == "user":
            own = ["user", "items", "times", "targets", "target_times"]
        return own + [name for table in self.described for name in table.columns]

    @property
    def described(self) -> list[Described]:
        """The further tables there are."""
        return [table for table in (self.about_items, self.about_users) if table is not None]

    def mistakes_of_events(self, kind: str) -> list[str]:
        """What is wrong with these keys for a source of a kind."""
        named = {name for name, field in EventColumns.model_fields.items() if getattr(self, name) != field.default}
        if kind != "interactions":
            return [f"`{name}` belongs to kind interactions, not to {kind}" for name in sorted(named)]
        found = [
            f"`kind: interactions` needs `{name}`: the column that tells {what}"
            for name, what in (("user", "who"), ("item", "what"), ("time", "when"))
            if getattr(self, name) is None
        ]
        if self.at_least is not None and self.value is None:
            found.append("`at_least` needs `value`: the column that holds it")
        twice = [name for name in self.event_columns if self.event_columns.count(name) > 1]
        if twice:
            found.append(f"two columns would be called {twice[0]!r}: rename one of `about_items` or `about_users`")
        return found
