"""Which rules are in force for whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emberbox.models.base import Language, Model

RULE_ID = r"^[a-z0-9_-]+(?:\.[a-z0-9_-]+)+$"


Profile = Literal["strict", "standard", "open"]


class PolicySwitches(Model):
    """Rules switched, by id or by a pattern with `*`, such as `python.*` or `*.credentials`. Where several switch the
    same rule, `enabled` wins over `ask`, and `ask` over `disabled`."""

    profile: Profile | None = Field(default=None, description="another profile than the wider level's")
    disabled: list[str] = Field(default_factory=list, description="rules that are not looked at")
    ask: list[str] = Field(default_factory=list, description="rules whose violation a person may let pass")
    enabled: list[str] = Field(default_factory=list, description="rules that block, whatever a wider level says")


class RuleConfig(Model):
    """A rule of one's own: either the names that it is about, or a tree-sitter query."""

    id: str = Field(pattern=RULE_ID, description="such as `acme.no-sockets`; it must differ from all others")
    language: Language = Field(description="the language that it is about")
    message: str = Field(min_length=1, description="what the code does, as the beginning of a message")
    why: str = Field(default="a rule of this installation", description="the reason, one clause")
    uses: list[str] = Field(
        default_factory=list,
        description="names as the code means them, whatever it calls them: `socket`, `shutil.copy` (python), `net`, "
        "`fs.rmSync`, `fetch` (javascript), `std::net` (rust); commands and their first words: `git push` (bash)",
    )
    query: str | None = Field(
        default=None, description="a tree-sitter query; the capture @hit, or the first, is the place"
    )
    action: Literal["block", "ask"] = Field(default="block", description="refuse the code, or ask a person")

    @model_validator(mode="after")
    def _one_way(self) -> RuleConfig:
        if bool(self.uses) == (self.query is not None):
            raise ValueError("give either `uses` or `query`")
        return self


class PolicyConfig(PolicySwitches):
    """Rules for everybody, then for a role, then for an agent; the narrower level wins."""

    profile: Profile | None = Field(
        default="standard",
        description="what is refused where no switch says otherwise: all that the rules find (strict), that without "
        "what ordinary programs do (standard), or nothing, since the machine is the boundary (open)",
    )
    rules: list[RuleConfig] = Field(default_factory=list, description="rules of one's own")
    roles: dict[str, PolicySwitches] = Field(default_factory=dict, description="switches by name of a role")
    agents: dict[str, PolicySwitches] = Field(
        default_factory=dict, description="switches by id of an agent, or a pattern"
    )
