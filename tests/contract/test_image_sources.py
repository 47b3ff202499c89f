"""Folders of images, IDX files and tar shards become a corpus; what is broken is counted with its name."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groundup.artifact import Store
from groundup.config import dump, parse
from groundup.data.corpus import Corpus
from groundup.data.images import decode, digest
from groundup.errors import DataError
from groundup.stages import prepare


def config(**section: Any) -> prepare.Config:
    parsed, mistakes = parse(prepare.Config, section)
    assert parsed is not None, mistakes
    return parsed


def run(key: str = "", *, checked: bool = True, **section: Any) -> Corpus:
    asked, store = config(**section), Store()
    assert not checked or prepare.check(asked, {}) == []
    key = key or str(hash(repr(dump(asked))))
    with store.draft("corpus", key) as out:
        prepare.run(asked, {}, out)
    found = store.find(key)
    assert found is not None
    return Corpus(found)


def rows(corpus: Corpus, split: str = "train") -> list[dict[str, Any]]:
    return sorted(corpus.documents(split), key=lambda document: document["id"])


def labels(corpus: Corpus, split: str = "train") -> list[Any]:
    return [row["label"] for row in rows(corpus, split)]


def bad(corpus: Corpus) -> dict[str, int]:
    return dict(corpus.artifact.json("ledger.json")["bad"])


def told(corpus: Corpus, reason: str) -> list[tuple[str, str]]:
    """The examples that the ledger gives for a reason: name and details."""
    return [(e["source"], e["excerpt"]) for e in corpus.artifact.json("ledger.json")["examples"][f"bad: {reason}"]]


def mistakes(**section: Any) -> str:
    parsed, found = parse(prepare.Config, section)
    found = prepare.check(parsed, {}) if parsed is not None else found
    return " ".join(f"{mistake.what} {mistake.fix}" for mistake in found)


def picture(seed: int, height: int = 12, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def packed(image: Image.Image, kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


def folders(files: Mapping[str, bytes | int]) -> None:
    """Write files; a number stands for a picture made of it."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(packed(picture(content)) if isinstance(content, int) else content)


@pytest.mark.smoke
def test_a_folder_of_folders_becomes_pictures_with_labels() -> None:
    folders({"p/cat/1.png": 1, "p/cat/2.PNG": 2, "p/dog/big/1.png": 3, "p/notes.txt": b"no picture", "p/.x/1.png": 4})
    corpus = run(source={"kind": "images", "paths": "p"})
    found = rows(corpus)
    assert [row["source"] for row in found] == ["p/cat/1.png:1", "p/cat/2.PNG:1", "p/dog/big/1.png:1"]
    assert [row["label"] for row in found] == ["cat", "cat", "big"]
    for row, seed in zip(found, (1, 2, 3), strict=True):
        np.testing.assert_array_equal(decode(row["image"]), np.array(picture(seed)))
        assert row["text"] == digest(np.array(picture(seed)))
    assert corpus.columns == ["text", "id", "source", "image", "label"]


@pytest.mark.smoke
def test_pictures_are_brought_to_the_form_the_source_asks_for() -> None:
    folders({"p/a/1.png": 1, "p/b/2.png": packed(picture(2, 30, 20).convert("L"))})
    default = run(source={"kind": "images", "paths": "p"})
    assert [decode(row["image"]).shape for row in rows(default)] == [(12, 16, 3), (30, 20, 3)]
    small = run(source={"kind": "images", "paths": "p", "image": {"size": [6, 8], "channels": 1, "fit": "pad"}})
    assert [decode(row["image"]).shape for row in rows(small)] == [(6, 8, 1)] * 2
    assert "belongs to kind images or idx or webdataset" in mistakes(source={"paths": "x.txt", "image": {"size": 8}})
    assert "is no size" in mistakes(source={"kind": "images", "paths": "p", "image": {"size": 0}})
    assert "has no `text_field`" in mistakes(source={"kind": "images", "paths": "p", "text_field": "label"})


@pytest.mark.smoke
def test_labels_may_be_renamed_given_or_left_out() -> None:
    folders({"p/n01/1.png": 1, "p/n02/2.png": 2})
    renamed = run(source={"kind": "images", "paths": "p", "values": {"label": {"n01": "tench", "n02": "goldfish"}}})
    assert labels(renamed) == ["tench", "goldfish"]
    given = run(source={"kind": "images", "paths": "p/n01/*.png", "add": {"label": "fish"}})
    assert labels(given) == ["fish"]
    none = run(source={"kind": "images", "paths": "p", "keep": "image"})
    assert none.columns == ["text", "id", "source", "image"]


@pytest.mark.smoke
def test_archives_are_read_in_place() -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for place in range(6):
            name = f"{('train', 'test')[place % 2]}/{('cat', 'dog')[place // 3]}/{place}.png"
            archive.writestr(name, packed(picture(place)))
        archive.writestr("README", "about")
        archive.writestr("labels.csv", "a,b\n")
    both = [{"kind": "images", "paths": f"a.zip!{split}/*/*.png", "split": split} for split in ("train", "test")]
    corpus = run(source=both)
    assert labels(corpus) == ["cat", "cat", "dog"] and labels(corpus, "test") == ["cat", "dog", "dog"]
    assert rows(corpus)[0]["source"] == "a.zip!train/cat/0.png:1"
    assert len(rows(run(source={"kind": "images", "paths": "a.zip"}))) == 6, "what is no picture is passed by"


@pytest.mark.smoke
def test_what_cannot_be_read_is_counted_and_named() -> None:
    whole = {f"p/cat/{number:02}.jpg": packed(picture(number), "JPEG") for number in range(20)}
    animated = io.BytesIO()
    picture(1).save(animated, "GIF", save_all=True, append_images=[picture(2)])
    folders(whole | {
        "p/cat/cut.jpg": packed(picture(30), "JPEG")[:-50],
        "p/cat/empty.jpg": b"",
        "p/cat/moving.gif": animated.getvalue(),
        "p/cat/text.jpg": b"this is no picture",
        "p/cat/cmyk.jpg": packed(picture(31).convert("CMYK"), "JPEG"),
        "p/cat/deep.png": packed(Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10) * 600)),
    })  # fmt: skip
    corpus = run(source={"kind": "images", "paths": "p"}, bad_rows="20%")
    assert len(rows(corpus)) == 22
    assert bad(corpus) == {
        "broken or cut off JPEG": 1,
        "empty file": 1,
        "several pictures in one file": 1,
        "no image of a known format": 1,
    }
    (source, detail), *rest = told(corpus, "broken or cut off JPEG")
    assert source == "p/cat/cut.jpg:1" and "truncated" in detail and not rest
    assert told(corpus, "several pictures in one file") == [("p/cat/moving.gif:1", "GIF")]
    with pytest.raises(DataError) as caught:
        run(source={"kind": "images", "paths": "p"})
    assert "4 of 26 rows (15.4%) cannot be read; `bad_rows` allows 1.0%" in str(caught.value)
    assert "p/cat/empty.jpg:1: empty file" in str(caught.value)


@pytest.mark.smoke
def test_mistakes_are_told_before_anything_is_decoded() -> None:
    folders({f"p/cat/{number}.jpg": b"no picture" for number in range(4)})
    said = mistakes(source={"kind": "images", "paths": "p"})
    assert "no row of 'p/cat/0.jpg' can be read: no image of a known format" in said
    folders({"p/cat/4.jpg": 4})
    assert mistakes(source={"kind": "images", "paths": "p"}) == "", "one good file among the first is enough"
    Path("q").mkdir()
    assert "the folder holds no .bmp, .gif, .jpeg, .jpg" in mistakes(source={"kind": "images", "paths": "q"})
    assert "(or jsonl" in mistakes(source={"paths": "p/cat/4.jpg"}), "auto does not guess that pictures are data"


@pytest.mark.smoke
def test_a_plan_sees_every_label_although_rows_come_label_by_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.data.corpus_forecast._SAMPLE_TEXTS", 2000)
    folders({f"p/{label}/{n:02}.png": 100 * place + n for place, label in enumerate("abcd") for n in range(25)})
    for name, values in (("i", DIGITS[:30].repeat(4, 0) + np.arange(120, dtype=np.uint8)[:, None, None]),
                         ("l", np.arange(10, dtype=np.uint8).repeat(12))):  # fmt: skip
        Path(name).write_bytes(idx(values))
    for source, expected in (
        ({"kind": "images", "paths": "p"}, set("abcd")),
        ({"kind": "idx", "paths": ["i", "l"]}, set(range(10))),
    ):
        found = prepare.forecast(config(source=source), {})
        assert {example["label"] for example in found.facts["examples"]} == expected
        assert len(found.facts["examples"]) < 50 and sum(found.facts["documents"].values()) in (100, 120)
        assert (found.disk_bytes or 0) > 10_000, "pictures take room"


@pytest.mark.smoke
def test_damaged_archives_spoil_only_their_own_members() -> None:
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_STORED) as archive:
        for number in range(3):
            archive.writestr(f"cat/{number}.png", packed(picture(number)))
        place = archive.getinfo("cat/1.png").header_offset
    spoilt = bytearray(Path("a.zip").read_bytes())
    spoilt[place + 100] ^= 255
    Path("a.zip").write_bytes(spoilt)
    corpus = run(source={"kind": "images", "paths": "a.zip"}, bad_rows="50%")
    assert len(rows(corpus)) == 2 and bad(corpus) == {"damaged file": 1}
    assert told(corpus, "damaged file")[0][0] == "a.zip!cat/1.png:1"


@pytest.mark.smoke
def test_label_folders_that_differ_between_splits_are_named() -> None:
    folders({"train/cat/1.png": 1, "train/dog/2.png": 2, "test/cat/3.png": 3, "test/dgo/4.png": 4})
    source = [{"kind": "images", "paths": split, "split": split} for split in ("train", "test")]
    expected = "label folders differ between splits: test has 'dgo', which train has not (and lacks 'dog', which train"
    assert expected in mistakes(source=source)
    with pytest.raises(DataError, match="test has 'dgo'"):
        run(source=source, checked=False)
    source[1]["values"] = {"label": {"cat": "cat", "dgo": "dog"}}
    assert labels(run(source=source), "test") == ["cat", "dog"]
    folders({"few/cat/5.png": 5})
    source[1] = {"kind": "images", "paths": "few", "split": "test"}
    assert labels(run(source=source), "test") == ["cat"], "a split may lack a class"
    folders({"new/unknown/6.png": 6})
    source = [{"kind": "images", "paths": "train"}, {"kind": "images", "paths": "new", "split": "test"}]
    assert "test has 'unknown', which train has not" in mistakes(source=source), (
        "all that is not held out is trained on"
    )
    source[1]["keep"] = "image"
    assert labels(run(source=source), "test") == [None]


@pytest.mark.smoke
def test_equal_pictures_are_duplicates_and_leaks_whatever_they_are_packed_as() -> None:
    folders({"train/a/1.png": 1, "train/a/2.bmp": packed(picture(1), "BMP"), "train/a/3.png": 3, "train/a/5.png": 5})
    folders({"test/a/4.tiff": packed(picture(3), "TIFF")})
    corpus = run(source=[{"kind": "images", "paths": split, "split": split} for split in ("train", "test")])
    assert [row["source"] for row in rows(corpus)] == ["train/a/1.png:1", "train/a/5.png:1"]
    assert corpus.artifact.metrics["leaks"]["exact"] == 1


def idx(values: np.ndarray[Any, Any], code: int = 8) -> bytes:
    """An array as an IDX file."""
    return struct.pack(">HBB", 0, code, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


DIGITS = np.random.default_rng(0).integers(0, 256, (30, 9, 7), dtype=np.uint8)
CLASSES = (np.arange(30) % 10).astype(np.uint8)


@pytest.mark.smoke
@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_idx_files_become_pictures_and_labels(packing: str) -> None:
    for name, values in (("images", DIGITS), ("labels", CLASSES)):
        if packing == ".zip":
            with zipfile.ZipFile("a.zip", "a") as archive:
                archive.writestr(name, idx(values))
        else:
            Path(name + packing).write_bytes((gzip.compress if packing else bytes)(idx(values)))
    paths = ["a.zip!images", "a.zip!labels"] if packing == ".zip" else [f"images{packing}", f"labels{packing}"]
    corpus = run(source={"kind": "idx", "paths": paths})
    found = rows(corpus)
    assert [row["label"] for row in found] == CLASSES.tolist()
    assert found[4]["source"] == f"{paths[0]}:5"
    np.testing.assert_array_equal(np.stack([decode(row["image"])[:, :, 0] for row in found]), DIGITS)
    if not packing:
        named = run(source={"kind": "idx", "paths": paths, "image": {"size": 8, "channels": 3},
                            "values": {"label": {n: f"digit {n}" for n in range(10)}}})  # fmt: skip
        assert decode(rows(named)[0]["image"]).shape == (8, 8, 3) and labels(named)[3] == "digit 3"
        alone = run(source={"kind": "idx", "paths": paths[0], "keep": "image"})
        assert len(rows(alone)) == 30


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("images", "classes", "said"),
    [
        (idx(DIGITS), idx(CLASSES[:29]), "'i' holds 30 images and 'l' 29 labels"),
        (idx(CLASSES), idx(DIGITS), "'i' holds 30 labels, where images are due `kind: idx` takes `paths: [images, la"),
        (idx(DIGITS), idx(DIGITS), "'l' holds values of shape 30 × 9 × 7, no labels"),
        (idx(DIGITS)[:-5], idx(CLASSES), "'i' has 1901 bytes, where its header promises 1906"),
        (idx(DIGITS) + b"x", idx(CLASSES), "'i' has 1907 bytes, where its header promises 1906"),
        (gzip.compress(idx(DIGITS)), idx(CLASSES), "'i' is no IDX file: it begins with 1f 8b 08 00"),
        (b"", idx(CLASSES), "'i' is no IDX file: it is empty"),
        (idx(DIGITS)[:9], idx(CLASSES), "'i' ends within its header"),
        (idx(DIGITS.astype(">f4"), 0x0D), idx(CLASSES), "'i' holds float32 of shape 30 × 9 × 7, where pixels are uint"),
        (idx(DIGITS), idx(CLASSES.astype(">f8"), 0x0E), "'l' holds float64 labels"),
        (idx(DIGITS[:0]), idx(CLASSES[:0]), "'i' holds no images: its shape is 0 × 9 × 7"),
        (idx(DIGITS[:, 0]), idx(CLASSES), "'i' holds no images, but uint8 of shape 30 × 7"),
        (struct.pack(">HBBIII", 0, 8, 3, 1, 100_000, 100_000), idx(CLASSES[:1]), "more than 50 million pixels"),
    ],
)  # fmt: skip
def test_idx_files_that_do_not_fit_are_refused(images: bytes, classes: bytes, said: str) -> None:
    Path("i").write_bytes(images)
    Path("l").write_bytes(classes)
    assert said in mistakes(source={"kind": "idx", "paths": ["i", "l"]})


@pytest.mark.smoke
def test_packed_idx_files_that_end_early_or_late_stop_the_stage() -> None:
    Path("l.gz").write_bytes(gzip.compress(idx(CLASSES)))
    for content, said in (
        (gzip.compress(idx(DIGITS)[:-100]), "ends after 28 of the 30 items it promises"),
        (gzip.compress(idx(DIGITS) + b"x"), "goes on after the 30 items it promises"),
        (gzip.compress(idx(DIGITS))[:-300], "is damaged"),
    ):
        Path("i.gz").write_bytes(content)
        with pytest.raises(DataError, match=said):
            run(source={"kind": "idx", "paths": ["i.gz", "l.gz"]}, checked=False)
    assert "names 2 files" in mistakes(source={"kind": "idx", "paths": ["*.gz", "l.gz"]})
    assert "takes `paths: [images, labels]`" in mistakes(source={"kind": "idx", "paths": ["a", "b", "c"]})


def shard(name: str, members: Sequence[tuple[str, bytes]]) -> None:
    """A tar archive, packed as its name says."""
    with tarfile.open(name, "w:gz" if name.endswith(".gz") else "w") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.smoke
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_tar_shards_become_samples(packing: str) -> None:
    Path("s").mkdir()
    shard(f"s/00.tar{packing}", [
        ("0001.png", packed(picture(1))), ("0001.cls", b"3\n"),
        ("0002.JPG", packed(picture(2), "JPEG")), ("0002.cls", b"cat"),
        ("a/0003.json", b'{"label": "dog", "by": {"name": "Ada"}}'), ("a/0003.png", packed(picture(3))),
        ("a/0004.png", packed(picture(4))), ("a/0004.json", b'{"cls": 7}'), ("a/0004.txt", "说明".encode()),
    ])  # fmt: skip
    shard(f"s/01.tar{packing}", [("../../../etc/passwd.png", packed(picture(5))), ("../../../etc/passwd.cls", b"1")])
    keep = {"image": "image", "label": "label", "by": "json.by.name", "caption": "txt", "key": "key"}
    corpus = run(source={"kind": "webdataset", "paths": "s", "keep": keep})
    found = [(row["label"], row["by"], row["caption"], row["key"]) for row in rows(corpus)]
    assert found == [
        ("3", None, None, "0001"),
        ("cat", None, None, "0002"),
        ("dog", "Ada", None, "a/0003"),
        ("7", None, "说明", "a/0004"),
        ("1", None, None, "../../../etc/passwd"),
    ]
    assert [row["source"].rpartition("/")[2] for row in rows(corpus)][3:] == [
        f"00.tar{packing}:4",
        f"01.tar{packing}:1",
    ]
    np.testing.assert_array_equal(decode(rows(corpus)[2]["image"]), np.array(picture(3)))
    assert not list(Path().rglob("*.png")), "nothing is unpacked to the disk"


@pytest.mark.smoke
def test_samples_that_lack_something_are_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.data.source_tar.LARGEST_FILE", 1 << 14)
    good = [part for n in range(9) for part in ((f"{n}.png", packed(picture(n))), (f"{n}.cls", b"1"))]
    shard("s.tar", [
        *good,
        ("nolabel.png", packed(picture(20))),
        ("noimage.cls", b"1"),
        ("cut.jpg", packed(picture(21), "JPEG")[:-40]), ("cut.cls", b"1"),
        ("twice.png", packed(picture(22))), ("twice.jpg", packed(picture(22), "JPEG")), ("twice.cls", b"1"),
        ("json.png", packed(picture(23))), ("json.json", b"{broken"),
        ("large.png", bytes(1 << 15)), ("large.cls", b"1"),
        ("link.seg.png", b"part of no sample"), (".hidden.png", b""),
    ])  # fmt: skip
    corpus = run(source={"kind": "webdataset", "paths": "s.tar"}, bad_rows="50%")
    assert len(rows(corpus)) == 9
    assert {reason: told(corpus, reason)[0][1] for reason in bad(corpus)} == {
        "a sample without a label": "nolabel",
        "a sample without an image": "noimage",
        "broken or cut off JPEG": told(corpus, "broken or cut off JPEG")[0][1],
        "two members of one kind in a sample": "twice.jpg",
        "a member that is no JSON": "json.json",
        "a member too large": "large.png",
    }
    assert told(corpus, "broken or cut off JPEG")[0][1].startswith("cut: image file is truncated")
    assert len(rows(run(source={"kind": "webdataset", "paths": "s.tar", "keep": "image"}, bad_rows="50%"))) == 10


@pytest.mark.smoke
def test_shards_that_are_broken_stop_the_stage() -> None:
    parts = [part for n in range(9) for part in ((f"{n}.png", packed(picture(n))), (f"{n}.cls", b"1"))]
    shard("whole.tar", parts)
    whole = Path("whole.tar").read_bytes()
    spoilt = bytearray(whole)
    spoilt[whole.index(b"3.png") + 150] ^= 1  # in the checksum of a header
    remarks = tarfile.TarInfo("remarks")
    remarks.type, remarks.size = tarfile.XHDTYPE, 4 << 30
    for content, said in (
        (remarks.tobuf() + whole, "is damaged: a member's name or remarks have 4294967296 bytes"),
        (whole[:3000], "is damaged"),
        (bytes(spoilt), "is damaged: a member's header is broken"),
        (b"no archive at all", "is damaged"),
    ):
        Path("s.tar").write_bytes(content)
        with pytest.raises(DataError, match=said):
            run(source={"kind": "webdataset", "paths": "s.tar"}, checked=False)
    shard("s.tar", [("a.csv", b"1,2")])
    assert "holds no samples: no member is one of .bmp" in mistakes(source={"kind": "webdataset", "paths": "s.tar"})


def everything() -> list[dict[str, Any]]:
    """Sources of all three kinds, with files that cannot be read among them."""
    with zipfile.ZipFile("a.zip", "w") as archive:
        for number in range(60):
            name = f"{'abc'[number % 3]}/{number:03}.png"
            archive.writestr(name, packed(picture(number % 50)) if number % 20 else b"")
    Path("i.gz").write_bytes(gzip.compress(idx(DIGITS)))
    Path("l.gz").write_bytes(gzip.compress(idx(CLASSES)))
    shard(
        "s.tar",
        [p for n in range(40) for p in ((f"{n}.png", packed(picture(100 + n))), (f"{n}.cls", b"4"))[: 1 + n % 9]],
    )
    form = {"size": 10, "channels": 1}
    return [
        {"kind": "images", "paths": "a.zip", "image": form},
        {"kind": "idx", "paths": ["i.gz", "l.gz"], "image": form},
        {"kind": "webdataset", "paths": "s.tar", "image": form},
    ]


def test_neither_processes_nor_blocks_of_work_change_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    source, found = everything(), []
    section = {"source": source, "split": {"validation": "10%", "test": "10%"}, "bad_rows": "20%"}
    for size, processes in ((1 << 22, 1), (1 << 12, 1), (1 << 12, 3)):
        monkeypatch.setattr("groundup.data.corpus_build.block_bytes", lambda total, size=size: size)
        corpus = run(f"{size} {processes}", **section, workers=processes)
        found.append((corpus.artifact.digest, corpus.artifact.json("ledger.json")))
    assert found[1] == found[2], "the number of processes does not matter"
    assert found[0][1] == found[1][1]


def test_mnist_is_read_as_it_is_published(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("mnist")
    paths = [str(folder / f"t10k-{name}.gz") for name in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    corpus = run(source={"kind": "idx", "paths": paths, "split": "test"})
    found = rows(corpus, "test")
    assert len(found) == 10_000
    assert [row["label"] for row in found[:10]] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert sorted(Counter(row["label"] for row in found).values())[0] == 892
    raw = np.frombuffer(gzip.decompress(Path(paths[0]).read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    np.testing.assert_array_equal(decode(found[1234]["image"])[:, :, 0], raw[1234])


def test_the_cifar_subset_is_read_from_its_archive(shared_data: Callable[[str], Path]) -> None:
    archive = shared_data("cifar10-subset/cifar10_12k_jpg.zip")
    source = [{"kind": "images", "paths": f"{archive}!{split}/*/*.jpg", "split": split} for split in ("train", "test")]
    corpus = run(source=source)
    assert len(set(labels(corpus))) == 10 and bad(corpus) == {}
    counts = Counter(labels(corpus, "test"))
    assert counts["frog"] == 200 and sum(counts.values()) == 2000
    assert {decode(row["image"]).shape for row in rows(corpus, "test")} == {(32, 32, 3)}
