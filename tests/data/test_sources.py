import dataclasses
import pickle

import numpy as np
import pytest

from crate_jax import data
from crate_jax.config import ConfigError, DataConfig
from tests.data.tiny_tfds import TinyImageless, TinyUnlabelled, png, prepare

COLOUR = {"channels": 3, "image_size": 8, "num_classes": 3}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    prepare(directory)
    return directory


def _tfds(tfds_dir, **changes):
    return DataConfig(source="tfds:tiny_images", data_dir=str(tfds_dir), **COLOUR | changes)


def test_digits_are_split_once_and_for_all():
    train, test = (data.open_source(DataConfig(), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    everything = np.concatenate([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    original = np.round(load_digits().images * (255 / 16)).reshape(1797, -1)
    assert sorted(map(bytes, everything.astype(np.uint8))) == sorted(
        map(bytes, original.astype(np.uint8))
    )
    assert np.bincount(test.labels).min() > 20


def test_tfds_reads_what_was_prepared(tfds_dir):
    config = _tfds(tfds_dir)
    data.validate(config)
    source = data.open_source(config, "train")
    assert len(source) == data.num_examples(config, "train") == 8
    values = sorted(int(source[i]["image"][0, 0, 0]) for i in range(8))
    assert values == [10 * i for i in range(8)]
    assert data.num_examples(config, "train[:75%]") == 6


def test_unprepared_tfds_data_says_how_to_prepare_it(tmp_path):
    config = DataConfig(source="tfds:mnist", data_dir=str(tmp_path))
    with pytest.raises(
        data.DataMissingError, match=r"(?s)not prepared.*download_and_prepare\(\).*data_dir"
    ):
        data.validate(config)
    with pytest.raises(data.DataMissingError, match="no_such_set"):
        data.validate(dataclasses.replace(config, source="tfds:no_such_set"))
    for wrong in ("tfds:mnist:99.0.0", "tfds:mnist/no_such_config"):
        with pytest.raises(ConfigError, match=wrong) as error:
            data.validate(dataclasses.replace(config, source=wrong))
        assert not isinstance(error.value, data.DataMissingError)


def test_half_prepared_tfds_data_names_what_is_missing(tmp_path):
    prepare(tmp_path)
    victim = next(tmp_path.rglob("*test.array_record*"))
    victim.unlink()
    with pytest.raises(data.DataMissingError, match=f"half prepared.*{victim.name}"):
        data.validate(_tfds(tmp_path))


def test_unknown_tfds_split(tfds_dir):
    with pytest.raises(ConfigError, match="no split 'validation'; it has: train, test") as error:
        data.validate(_tfds(tfds_dir, eval_split="validation"))
    assert not isinstance(error.value, data.DataMissingError)


@pytest.mark.parametrize(
    "Builder, held",
    [
        (TinyImageless, r"label \(ClassLabel\), pixels \(Image\)"),
        (TinyUnlabelled, r"image \(Image\), label \(Scalar\)"),
    ],
)
def test_tfds_data_that_is_not_images_with_a_class_each(tmp_path, Builder, held):
    prepare(tmp_path, Builder)
    config = dataclasses.replace(_tfds(tmp_path), source=f"tfds:{Builder.name}")
    with pytest.raises(ConfigError, match=f"label .ClassLabel.; it has: {held}"):
        data.validate(config)


def test_a_split_is_opened_once_and_counted_without_opening(tfds_dir):
    config = _tfds(tfds_dir, eval_split="test[:3]")
    before = data.open_source.cache_info().misses
    data.num_examples(config, config.eval_split)
    assert data.open_source.cache_info().misses == before
    source = data.open_source(config, config.eval_split)
    for _ in range(2):
        list(data.eval_batches(config, batch_size=3))
    assert data.open_source(config, config.eval_split) is source
    assert data.open_source.cache_info().misses == before + 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_source_in_use_goes_to_worker_processes(tfds_dir, in_memory, monkeypatch):
    monkeypatch.setattr(data.sources, "IN_MEMORY_BYTES", 2**28 * in_memory)
    config = _tfds(tfds_dir, train_split=f"train[:{6 + in_memory}]", workers=1)
    source = data.open_source(config, config.train_split)
    image = source[2]["image"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[2]["image"], image)
    batch = next(data.train_batches(config, seed=0, batch_size=len(source)))
    assert sorted(batch["index"]) == list(range(len(source)))


def _folder(root, broken=()):
    for split in ("train", "test"):
        for c in range(3):
            directory = root / split / f"class{c}"
            directory.mkdir(parents=True)
            for i in range(2):
                content = (
                    b"no image"
                    if (c, i) in broken
                    else png(np.full((8, 8, 3), 40 * c + i, np.uint8))
                )
                (directory / f"{i}.png").write_bytes(content)
    return DataConfig(source=f"folder:{root}", **COLOUR)


def test_a_folder_in_alphabetical_order(tmp_path):
    config = _folder(tmp_path)
    data.validate(config)
    source = data.open_source(config, "train")
    assert [int(source[i]["label"]) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert int(source[3]["image"][0, 0, 0]) == 41


def test_folder_errors(tmp_path):
    with pytest.raises(data.DataMissingError, match="there is no folder .*PATH/SPLIT/CLASS/FILE"):
        data.validate(DataConfig(source=f"folder:{tmp_path}/nowhere", **COLOUR))
    config = _folder(tmp_path)
    with pytest.raises(ConfigError, match="3 classes; config.data.num_classes=2"):
        data.validate(dataclasses.replace(config, num_classes=2))
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no images"):
        data.validate(config)


def test_folder_splits_number_the_same_classes(tmp_path):
    config = _folder(tmp_path)
    (tmp_path / "test" / "class1").rename(tmp_path / "test" / "another")
    with pytest.raises(ConfigError, match="train: class1\n  test: another$") as error:
        data.validate(config)
    assert not isinstance(error.value, data.DataMissingError)
    data.validate(config, splits=("test",))


def test_only_the_named_splits_are_opened(tmp_path):
    config = dataclasses.replace(_folder(tmp_path), train_split="not_here")
    with pytest.raises(data.DataMissingError, match="not_here"):
        data.validate(config)
    data.validate(config, splits=(config.eval_split,))


def test_unreadable_images_fail_or_are_skipped_and_counted(tmp_path):
    config = _folder(tmp_path, broken={(1, 0), (1, 1)})
    with pytest.raises(ConfigError, match="record 2 .* is not a readable image.*on_bad_image"):
        data.open_source(config, "train")[2]
    skipping = data.open_source(dataclasses.replace(config, on_bad_image="skip"), "train")
    example = skipping[2]
    assert (example["index"], example["skipped"], int(example["label"])) == (4, 2, 2)
    batch = next(
        data.train_batches(dataclasses.replace(config, on_bad_image="skip"), seed=0, batch_size=6)
    )
    assert batch["skipped"] == 3  # one record is two away from a readable one, one is one away
    assert not {2, 3} & set(batch["index"].tolist())


def test_unreadable_images_are_not_scored(tmp_path):
    config = dataclasses.replace(_folder(tmp_path, broken={(1, 0), (1, 1)}), on_bad_image="skip")
    first, second = data.eval_batches(config, batch_size=4)
    assert (first["mask"].tolist(), int(first["skipped"])) == ([1, 1, 0, 0], 2)
    assert (second["mask"].tolist(), int(second["skipped"])) == ([1, 1, 0, 0], 0)


def test_an_unreadable_last_image_is_counted_once(tmp_path):
    config = dataclasses.replace(_folder(tmp_path, broken={(2, 1)}), on_bad_image="skip")
    _, batch = data.eval_batches(config, batch_size=4)
    assert (batch["mask"].tolist(), int(batch["skipped"])) == ([1, 0, 0, 0], 1)


def test_arrays_in_memory():
    images, labels = np.zeros((5, 4, 4, 1), np.uint8), np.arange(5) % 2
    data.register_arrays("mine", train=(images, labels), test=(images[:2], labels[:2]))
    config = DataConfig(source="array:mine", image_size=4, num_classes=2)
    data.validate(config)
    assert data.num_examples(config, "test") == 2
    data.register_arrays("mine", train=(images, labels), test=(images[:3], labels[:3]))
    assert data.num_examples(config, "test") == 3
    with pytest.raises(data.DataMissingError, match="register_arrays"):
        data.validate(dataclasses.replace(config, source="array:other"))
    with pytest.raises(ConfigError, match="uint8 images"):
        data.register_arrays("bad", train=(images.astype(float), labels))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"crop": "inceptoin"}, "did you mean 'inception'"),
        ({"interpolation": "cubic"}, "config.data.interpolation='cubic'"),
        ({"channels": 3}, "set config.data.channels=1"),
        ({"num_classes": 9}, "10 classes; config.data.num_classes=9"),
        ({"randaugment_layers": 2}, "wants colour"),
        ({"eval_resize": "shorter", "eval_resize_size": 4}, "smaller than"),
        ({"train_split": "validation"}, "splits train and test"),
    ],
)
def test_bad_settings_get_a_sentence(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        data.validate(DataConfig(**changes))
    assert not isinstance(error.value, data.DataMissingError)


@pytest.mark.parametrize(
    "changes",
    [
        {"on_bad_image": "ignore"},
        {"channels": 2},
        {"randaugment_layers": 2},
        {"eval_resize": "shorter", "eval_resize_size": 4},
    ],
)
def test_settings_are_looked_at_before_data_is(tmp_path, changes):
    with pytest.raises(ConfigError) as error:
        data.validate(DataConfig(source=f"folder:{tmp_path}/nowhere", **changes))
    assert not isinstance(error.value, data.DataMissingError)
