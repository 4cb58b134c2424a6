"""The tree of snapshots of one sandbox, against a simple model, and its corners."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Container
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from emberbox import load_settings
from emberbox.errors import SnapshotFailed, SnapshotNotFound
from emberbox.images.store import Image
from emberbox.machines.contract import Snapshot
from emberbox.models import MachineLimits, SnapshotKind
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree
from snapshot_fakes import make_image

KINDS: list[SnapshotKind] = ["manual", "post_execution", "failure", "pre_rollback", "shutdown"]
MOST = 4


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return make_image(load_settings(cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tree(tmp_path: Path, image: Image) -> Tree:
    return Tree(image, tmp_path / "snapshots")


class Tree:
    """A tree whose snapshots are written by hand."""

    def __init__(self, image: Image, folder: Path, *, durable: bool = False) -> None:
        self.image = image
        self.tree = SnapshotTree("sb-1", "alice", folder, MOST, durable=durable)

    def take(
        self, name: str | None = None, kind: SnapshotKind = "manual", path: tuple[str, ...] = (), *, good: bool = True
    ) -> Node:
        directory = self.tree.new_directory(kind)
        directory.mkdir()
        (directory / "pages.img").write_bytes(b"x")
        snapshot = Snapshot(directory, self.image, self.image.limits, 1, 10)
        return self.tree.add(snapshot, name, kind, SnapshotPoint(path, good))


@dataclass
class Entry:
    """What the model knows of a snapshot."""

    name: str
    kind: SnapshotKind
    parent: str | None
    kept: bool = False
    ephemeral: bool = False


@dataclass
class Model:
    entries: dict[str, Entry] = field(default_factory=dict)
    head: str | None = None

    def remove(self, name: str) -> None:
        gone = self.entries.pop(name)
        for entry in self.entries.values():
            if entry.parent == name:
                entry.parent = gone.parent
        if self.head == name:
            self.head = gone.parent

    def evicted(self, kind: SnapshotKind, held: Container[str]) -> str | None:
        """What makes room for one more; "" where nothing may."""
        counted = [e for e in self.entries.values() if e.kind != "shutdown"]
        if kind == "shutdown" or len(counted) < MOST:
            return None
        policys = (n for n, e in self.entries.items() if e.kind not in ("manual", "shutdown"))
        return next((name for name in policys if name not in held), "")


def _made_up() -> Image:
    """No image at all: a tree does not look into it."""
    image: Any = SimpleNamespace(limits=MachineLimits())
    return cast("Image", image)


class Machine(RuleBasedStateMachine):
    """The same is done to a tree and to a model."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.made = Tree(_made_up(), self.folder / "s", durable=True)
        self.tree = self.made.tree
        self.model = Model()
        self.held: dict[str, ExitStack] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(target=taken, kind=st.sampled_from(KINDS), name=st.sampled_from(["a", "b", None]), kept=st.booleans())
    def take(self, kind: SnapshotKind, name: str | None, kept: bool) -> str:
        evicted = self.model.evicted(kind, self.held)
        if evicted == "":
            with pytest.raises(SnapshotFailed, match="snapshots already"):
                self.tree.new_directory(kind)
            return ""
        if evicted is not None:
            self.model.remove(evicted)
        node = self.made.take(name, kind)
        node.info.kept = kept
        self.model.entries[node.info.snapshot_id] = Entry(node.info.name, kind, self.model.head, kept)
        self.model.head = node.info.snapshot_id
        return node.info.snapshot_id

    @rule(name=taken)
    def remove(self, name: str) -> None:
        if name in self.model.entries:
            self.tree.remove(name)
            self.model.remove(name)
        else:
            with pytest.raises(SnapshotNotFound):
                self.tree.remove(name)

    @rule(name=taken)
    def go_back(self, name: str) -> None:
        self.tree.went_back_to(name)
        if name in self.model.entries:
            self.model.head = name

    @rule(name=taken)
    def hold(self, name: str) -> None:
        if name in self.model.entries and name not in self.held:
            self.held[name] = ExitStack()
            self.held[name].enter_context(self.tree.use(self.tree.find(name)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.held)))  # ids are random: their order is not repeated
        self.held.pop(name).close()

    @rule(name=taken)
    def put_in_place(self, name: str) -> None:
        if name in self.model.entries:
            self.tree.put_in_place(self.tree.find(name))
            for other in [n for n, e in self.model.entries.items() if e.ephemeral and n != name]:
                self.model.remove(other)
            self.model.entries[name].ephemeral = True

    @rule(name=taken)
    def stays(self, name: str) -> None:
        if name in self.model.entries:
            self.tree.find(name).stays()
            self.model.entries[name].ephemeral = False

    @rule()
    def begin_again(self) -> None:
        """The sandbox ends; what is to be kept stays, and is nobody's any more."""
        self.tree.clear()
        stay = {name for name, entry in self.model.entries.items() if entry.kept}
        assert {p.name for p in self.files()} == stay | set(self.held)
        for name in stay - set(self.held):
            shutil.rmtree(self.tree.folder / name)
        for name in stay & set(self.held):
            self.held.pop(name).close()
            shutil.rmtree(self.tree.folder / name)
        self.tree = self.made.tree = SnapshotTree("sb-1", "alice", self.tree.folder, MOST, durable=True)
        self.model = Model()

    def files(self) -> list[Path]:
        return list(self.tree.folder.iterdir()) if self.tree.folder.exists() else []

    @invariant()
    def they_agree(self) -> None:
        entries = self.model.entries
        assert [i.snapshot_id for i in self.tree.infos()] == list(entries)
        assert [(i.name, i.kind, i.parent_id) for i in self.tree.infos()] == [
            (e.name, e.kind, e.parent) for e in entries.values()
        ]
        assert self.tree.head == self.model.head
        assert self.model.head is None or self.model.head in entries
        assert {path.name for path in self.files()} == set(entries) | set(self.held), "files in use stay"
        assert self.tree.size_bytes == 10 * len(entries)
        for name in {entry.name for entry in entries.values()}:
            newest = [n for n, e in entries.items() if e.name == name][-1]
            assert self.tree.find(name).info.snapshot_id in (newest, name), "an id wins over a name"


TestTree = Machine.TestCase
TestTree.settings = hypothesis_settings(max_examples=20, stateful_step_count=30, deadline=None)


def test_the_last_good_state_is_above_the_head_first(tree: Tree) -> None:
    root = tree.take(path=("ex-1",))
    tree.take(path=("ex-1", "ex-2"), good=False)
    other = tree.take(path=("ex-1", "ex-3"))
    tree.tree.went_back_to(root.info.snapshot_id)
    bad = tree.take(path=("ex-1", "ex-4"), good=False)
    assert tree.tree.last_good() is root
    tree.tree.remove(root.info.snapshot_id)
    assert tree.tree.last_good() is other, "of another branch, where there is none above"
    tree.tree.remove(other.info.snapshot_id)
    assert tree.tree.last_good() is None
    assert tree.tree.ends_with("ex-4") is bad
    assert tree.tree.ends_with("ex-3") is None


def test_found_again_after_a_restart_with_their_parents(tree: Tree, tmp_path: Path, image: Image) -> None:
    """The one in the middle is gone: those below it get the nearest state above."""
    a = tree.take(path=("1",))
    b = tree.take(path=("1", "2"))
    c = tree.take(path=("1", "2", "3"))
    tree.tree.went_back_to(a.info.snapshot_id)
    d = tree.take(path=("1", "4"))
    again = SnapshotTree("sb-1", "alice", tmp_path, MOST)
    again.take_back([a, c, d], c.info.snapshot_id)
    assert b.info.snapshot_id not in {i.snapshot_id for i in again.infos()}
    assert [again.parent(node) for node in (a, c, d)] == [None, a, a]
    assert again.current() is c


@pytest.mark.parametrize("head", [None, "snap-gone"])
def test_a_head_that_is_gone_is_the_newest_that_is_there(tree: Tree, tmp_path: Path, head: str | None) -> None:
    nodes = [tree.take(), tree.take()]
    again = SnapshotTree("sb-1", "alice", tmp_path, MOST)
    again.take_back(nodes, head)
    assert again.current() is nodes[-1]
    again.take_back([], None)


def test_a_shutdown_needs_no_place(tree: Tree) -> None:
    for _ in range(MOST):
        tree.take()
    with pytest.raises(SnapshotFailed, match="has 4 snapshots already") as error:
        tree.take()
    assert "delete_snapshot()" in error.value.remediation
    shutdown = tree.take(kind="shutdown")
    tree.tree.remove(tree.tree.infos()[0].snapshot_id)
    tree.take()
    assert shutdown.info.snapshot_id in {i.snapshot_id for i in tree.tree.infos()}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, image: Image) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotFailed, match="file/x"):
        Tree(image, tmp_path / "file" / "x").take()


def test_what_is_in_use_does_not_make_room(tree: Tree) -> None:
    nodes = [tree.take(kind="post_execution") for _ in range(MOST)]
    with tree.tree.use(nodes[0]):
        tree.take(kind="failure")
        assert [node for node in nodes if node in tree.tree.nodes()] == [nodes[0], *nodes[2:]]
