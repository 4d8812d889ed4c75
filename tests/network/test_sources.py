"""Sources of samples: each gives what arrays in memory give, some at a time; what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import Array
from PIL import Image

from snncompiler.errors import Refused, UsageError
from snncompiler.network import data as data_module
from snncompiler.network import sources
from snncompiler.network.data import Dataset, InputSpec, Preprocess, load_data
from snncompiler.network.sources import OnDisk, Pictures, rows_of_npy, rows_of_npz

SPEC = InputSpec("input", (None, 3, 5, 6), np.dtype(np.float32))
ROW = InputSpec("input", (None, 4), np.dtype(np.float32))
NAMES = [f"{kind}/{number}.png" for kind in ("ant", "bee", "cat") for number in range(4)]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(NAMES), 5, 6, 3)).astype(np.uint8)
CLASSES = np.repeat([0, 1, 2], 4)
#: What each of the sources should give.
WANTED = load_data({"x": PIXELS, "y": CLASSES}, [SPEC])


def encoded(image: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


FILES = dict(zip(NAMES, map(encoded, PIXELS), strict=True))


def folder(root: Path) -> str:
    for name, raw in FILES.items():
        file = root / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
    (root / "pictures" / "notes.txt").write_text("no image")
    return str(root / "pictures")


def zipped(root: Path, names: list[str] | None = None, file: str = "pictures.zip") -> str:
    with zipfile.ZipFile(root / file, "w") as archive:
        for name in reversed(names or NAMES):
            archive.writestr(name, FILES[name])
    return str(root / file)


def tarred(root: Path, files: dict[str, bytes] | None = None, file: str = "pictures.tar") -> str:
    with tarfile.open(root / file, "w") as archive:
        for name, raw in reversed((files or FILES).items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return str(root / file)


def samples(kind: str, numbers: range = range(len(NAMES))) -> dict[str, bytes]:
    """Files in the WebDataset convention, with the class beside each image."""
    found = {}
    for number in numbers:
        found[f"{number:04}.png"] = FILES[NAMES[number]]
        label = str(CLASSES[number])
        found[f"{number:04}.{kind}"] = (
            json.dumps({"label": int(label)}) if kind == "json" else label
        ).encode()
        found[f"{number:04}.mask.png"] = b"another image of the sample"
    return found


def several_tars(root: Path) -> str:
    tarred(root, samples("cls", range(7, 12)), "shard-1.tar")
    tarred(root, samples("cls", range(7)), "shard-0.tar")
    return str(root / "shard-*.tar")


def several_zips(root: Path) -> str:
    zipped(root, NAMES[5:], "b.zip")
    zipped(root, NAMES[:5], "a.zip")
    return str(root / "?.zip")


def parquet(root: Path, plain: bool = False) -> str:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    raws = list(FILES.values())
    images = raws if plain else [{"bytes": raw, "path": None} for raw in raws]
    table = arrow.table({"number": range(12), "image": images, "label": CLASSES})
    writer.write_table(table, root / "pictures.parquet", row_group_size=5)
    return str(root / "pictures.parquet")


def npz(root: Path, save: Callable[..., None] = np.savez) -> str:
    save(root / "data.npz", x=PIXELS, y=CLASSES)
    return str(root / "data.npz")


def several_npz(root: Path) -> str:
    np.savez(root / "data-b.npz", x=PIXELS[5:], y=CLASSES[5:])
    np.savez(root / "data-a.npz", x=PIXELS[:5], y=CLASSES[:5])
    return str(root / "data-*.npz")


SOURCES: dict[str, Callable[[Path], str]] = {
    "folder": folder,
    "zip": zipped,
    "tar": tarred,
    "webdataset, cls": lambda root: tarred(root, samples("cls")),
    "webdataset, json": lambda root: tarred(root, samples("json")),
    "webdataset, txt": lambda root: tarred(root, samples("txt")),
    "several tars": several_tars,
    "several zips": several_zips,
    "parquet": parquet,
    "parquet of bytes": lambda root: parquet(root, plain=True),
    "npz": npz,
    "compressed npz": lambda root: npz(root, np.savez_compressed),
    "several npz": several_npz,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    found = load_data(SOURCES[kind](tmp_path), [SPEC])
    assert len(found) == 12 and found.labels is not None
    assert found.labels.tolist() == CLASSES.tolist()
    for some in (lambda one: one, lambda one: one.head(7), lambda one: one.sample(5, seed=3)):
        mine, other = some(found).in_memory(), some(WANTED)
        assert np.array_equal(mine.feeds["input"], other.feeds["input"])
        assert np.array_equal(mine.labels, other.labels) and mine.sha256() == other.sha256()
    assert [one.code for one in found.findings] == [one.code for one in WANTED.findings]


@pytest.mark.parametrize("kind", ["folder", "parquet", "several tars", "several npz"])
@pytest.mark.parametrize(("size", "fixed"), [(1, None), (5, None), (5, 5), (30, None), (16, 16)])
def test_batches_are_the_samples_in_their_order(
    tmp_path: Path, kind: str, size: int, fixed: int | None
) -> None:
    files = load_data(SOURCES[kind](tmp_path), [SPEC])
    for dataset in (files, WANTED):
        batches = list(dataset.batches(size, fixed))
        assert np.concatenate([batch.numbers for batch in batches]).tolist() == list(range(12))
        for batch in batches:
            assert batch.size == (fixed or batch.count)
            wanted = np.resize(batch.numbers, batch.size)
            assert np.array_equal(batch.feeds["input"], WANTED.feeds["input"][wanted])
        inner = list(dataset.batches(size, fixed, 1, 3))
        assert [one.numbers.tolist() for one in inner] == [
            one.numbers.tolist() for one in batches[1:3]
        ]


class Counted(Pictures):
    """Pictures that count how often they are read."""

    def __init__(self, count: int) -> None:
        self.where, self.names, self.read = "counted", [f"{i}.png" for i in range(count)], 0

    def raw(self, number: int) -> bytes:
        self.read += 1
        return FILES[NAMES[number % 12]]


def test_no_more_is_read_than_some_batches_ahead() -> None:
    pictures = Counted(1000)
    lazy = data_module.ImageSamples(pictures, SPEC, Preprocess(), data_module.Seen(), False)
    dataset = Dataset(data_module.Lazy({"input": lazy}, range(1000)))
    batches = dataset.batches(4)
    most = 1 + 4 * (2 * data_module.READERS + 1)
    for taken in range(5):
        next(batches)
        assert pictures.read <= most + 4 * taken
    batches.close()  # which waits for what is being read
    assert pictures.read <= most + 4 * 5


# --- arrays in files ---


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<c16", "?", "<i8", "<U3", "<M8[s]"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_arrays_in_files(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.array(np.random.default_rng(0).integers(0, 99, (9, 2, 3)).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", other=np.arange(3), x=array)
    for rows in (rows_of_npy(tmp_path / "a.npy"), rows_of_npz(tmp_path / "a.npz")["x"]):
        assert isinstance(rows, OnDisk) == (order == "C")
        assert rows.shape == (9, 2, 3) and rows.dtype == array.dtype
        for numbers in ([], [3], [0, 1, 2], [8, 0, 1, 5, 6, 6]):
            wanted = np.array(numbers, np.int64)
            assert np.array_equal(rows.read(wanted), array[wanted])


@pytest.mark.parametrize("kind", ["U3", "M8[s]", "V2", "c8", "U"])
def test_types_that_no_network_takes(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4), kind))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 4), np.float32), y=np.zeros(3, kind))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(Refused, match="SNNC302"):
            load_data(tmp_path / name, [ROW])


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 4), np.float32))
    dataset = load_data(tmp_path / "a.npy", [ROW])
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(raw[:-20])
    with pytest.raises(Refused, match=r"SNNC301 .*is cut off"):
        dataset.in_memory()


def test_the_place_of_what_is_not_finite_is_that_in_the_whole(tmp_path: Path) -> None:
    values = np.zeros((40, 4), np.float32)
    values[37, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(Refused, match=r"SNNC303 .*nan at \[37, 2\]"):
        list(load_data(tmp_path / "a.npy", [ROW]).batches(8))


def test_whole_inputs_of_a_network_of_one_size_in_a_file(tmp_path: Path) -> None:
    spec = InputSpec("x", (3, 2), np.dtype(np.float32))
    x = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(10))
    found = load_data(tmp_path / "a.npz", [spec])
    assert found.rows == 3 and len(found) == 30
    assert np.array_equal(found.take(np.array([7, 2])).feeds["x"].reshape(2, 3, 2), x[[7, 2]])


# --- what is damaged, and what does not fit ---


def spoil(root: Path, *names: str) -> str:
    path = folder(root)
    for name in names:
        file = root / "pictures" / name
        file.write_bytes(file.read_bytes()[:60])
    return path


def test_a_damaged_image_is_named_and_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    bad = ["bee/1.png", "cat/3.png"]
    path = spoil(tmp_path, *bad)
    with pytest.raises(Refused, match=r"SNNC301 image bee/1.png .*skip-damaged"):
        load_data(path, [SPEC]).in_memory()
    lazy = load_data(path, [SPEC], skip_damaged=True)
    found = lazy.in_memory()
    kept = [number for number, name in enumerate(NAMES) if name not in bad]
    assert np.array_equal(found.feeds["input"], WANTED.feeds["input"][kept])
    assert found.labels is not None and found.labels.tolist() == CLASSES[kept].tolist()
    (warning,) = [one for one in found.findings if one.code == "SNNC311"]
    assert warning.severity == "warning" and warning.message.startswith("2 images were damaged")
    assert all(name in warning.message for name in bad)
    batches = list(lazy.batches(4, 4))
    assert np.concatenate([batch.numbers for batch in batches]).tolist() == kept
    assert [len(batch.damaged) for batch in batches] == [0, 1, 1]
    assert all(batch.size == 4 for batch in batches)


def test_the_first_image_may_be_damaged_too(tmp_path: Path) -> None:
    path = spoil(tmp_path, "ant/0.png")
    with pytest.raises(Refused, match=r"SNNC301 image ant/0.png"):
        load_data(path, [SPEC])
    assert len(load_data(path, [SPEC], skip_damaged=True).in_memory()) == 11


def test_no_image_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="SNNC303 no image of"):
        load_data(spoil(tmp_path, *NAMES), [SPEC], skip_damaged=True)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_file_that_is_too_large_for_an_image_is_not_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_IMAGE_BYTES", max(map(len, FILES.values())))
    monkeypatch.setitem(FILES, NAMES[5], FILES[NAMES[5]] + bytes(1000))
    with pytest.raises(Refused, match=f"SNNC301 image {NAMES[5]} .*an image at most"):
        load_data(SOURCES[kind](tmp_path), [SPEC]).in_memory()


def test_an_image_of_another_size_is_no_damage(tmp_path: Path) -> None:
    path = folder(tmp_path)
    Image.fromarray(PIXELS[0, :4]).save(tmp_path / "pictures" / "cat" / "2.png")
    with pytest.raises(Refused, match=r"SNNC302 image cat/2\.png has shape"):
        load_data(path, [SPEC], skip_damaged=True).in_memory()
    any_size = InputSpec("input", (None, 3, None, None), np.dtype(np.float32))
    with pytest.raises(Refused, match=r"SNNC302 image cat/2.png becomes .*ant/0.png.*--resize"):
        load_data(path, [any_size]).in_memory()


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ({**samples("cls"), "0003.cls": b"a caption"}, "SNNC302", "no class beside 0003.png"),
        ({**samples("cls"), "0000.cls": b"a caption"}, "SNNC302", "no class beside 0000.png"),
        ({**samples("cls"), "0003.jpg": b"another"}, "SNNC302", "2 images of one sample"),
        ({"a.txt": b"1"}, "SNNC303", "holds no images"),
    ],
)
def test_a_tar_that_does_not_fit(
    tmp_path: Path, files: dict[str, bytes], code: str, said: str
) -> None:
    with pytest.raises(Refused, match=rf"{code} .*{said}"):
        load_data(tarred(tmp_path, files), [SPEC])


def test_captions_are_no_classes(tmp_path: Path) -> None:
    files = {f"{n}.png": raw for n, raw in enumerate(FILES.values())}
    files |= {f"{n}.txt": b"a photograph" for n in range(12)}
    assert load_data(tarred(tmp_path, files), [SPEC]).labels is None


def test_damaged_archives(tmp_path: Path) -> None:
    whole = Path(tarred(tmp_path)).read_bytes()
    for end in (0, 100, 600, len(whole) // 2, len(whole) - 10240):
        (tmp_path / "pictures.tar").write_bytes(whole[:end])
        with pytest.raises(Refused, match="SNNC301"):
            load_data(tmp_path / "pictures.tar", [SPEC])
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="unpack it"):
        load_data(tmp_path / "a.tar.gz", [SPEC])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(Refused, match="SNNC301"):
        load_data(tmp_path / "a.parquet", [SPEC])


def test_several_files_that_do_not_belong_together(tmp_path: Path) -> None:
    several_npz(tmp_path)
    np.savez(tmp_path / "data-c.npz", x=PIXELS[:, :4], y=CLASSES)
    with pytest.raises(Refused, match=r"SNNC302 .*data-c.npz are not like"):
        load_data(tmp_path / "data-*.npz", [SPEC])
    zipped(tmp_path)
    with pytest.raises(UsageError, match="arrays and for images"):
        load_data(tmp_path / "*.*", [SPEC])
    with pytest.raises(UsageError, match="nothing is called"):
        load_data(tmp_path / "none-*.npz", [SPEC])


# --- labels from a file ---


def listed(root: Path, *lines: str) -> Path:
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


@pytest.mark.parametrize("heading", [[], ["file,class"]])
def test_labels_from_a_csv(tmp_path: Path, heading: list[str]) -> None:
    path = folder(tmp_path)
    numbers = [f"{name},{11 - i}" for i, name in enumerate(NAMES)]
    found = load_data(path, [SPEC], labels=listed(tmp_path, *heading, *numbers[::-1]))
    assert found.labels is not None and found.labels.tolist() == list(range(11, -1, -1))
    kinds = [f"{name},{'zebra' if i % 2 else 'owl'}" for i, name in enumerate(NAMES)]
    found = load_data(path, [SPEC], labels=listed(tmp_path, *heading, *kinds, "unused.png,fox"))
    # Alphabetical: fox, owl, zebra.
    assert found.labels is not None and found.labels.tolist() == [1, 2] * 6


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    path = folder(tmp_path)
    rows = [f"{name},1" for name in NAMES]
    for lines, said in (
        (rows[:-2], "no class of 2 images, such as cat/2.png"),
        ([*rows, f"{NAMES[3]},2"], "two classes of ant/3.png"),
        ([*rows, "alone"], "no file name and class in its row 13"),
        # Of the same names in several folders it is not known which is meant.
        ([f"{number}.png,1" for number in range(4)], "no class of 12 images"),
    ):
        with pytest.raises(Refused, match=rf"SNNC302 .*{said}"):
            load_data(path, [SPEC], labels=listed(tmp_path, *lines))
    with pytest.raises(UsageError, match=r"SNNC301 .*No such file"):
        load_data(path, [SPEC], labels=tmp_path / "none.csv")


@pytest.mark.parametrize("given", [{"labels": "labels.csv"}, {"skip_damaged": True}])
def test_what_is_for_images_is_refused_for_arrays(tmp_path: Path, given: dict[str, str]) -> None:
    for data in (npz(tmp_path), PIXELS, WANTED):
        with pytest.raises(UsageError, match="does not apply to"):
            load_data(data, [SPEC], **given)  # type: ignore[arg-type]
