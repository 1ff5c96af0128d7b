import dataclasses
import itertools
import multiprocessing
import threading

import numpy as np
import pytest

from crate_jax import data
from crate_jax.config import ConfigError, DataConfig

CONFIG = DataConfig(
    source="synthetic", image_size=8, channels=3, num_classes=4, crop="inception", flip=True,
    randaugment_layers=2,
)  # fmt: skip


def _take(n, config=CONFIG, **kwargs):
    settings = {"seed": 0, "batch_size": 16} | kwargs
    return list(itertools.islice(data.train_batches(config, **settings), n))


def _assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key], err_msg=key)


def test_batches_are_a_function_of_seed_and_step():
    batches = _take(5)
    _assert_equal(batches, _take(5))
    _assert_equal(batches[3:], _take(2, start_step=3))
    assert not np.array_equal(batches[0]["index"], _take(1, seed=1)[0]["index"])


@pytest.mark.parametrize(
    "shares", [[range(8), range(8, 16)], [[0, 1, 8, 9], [2, 3, 4, 15]]], ids=["halves", "scattered"]
)
def test_hosts_read_rows_of_the_same_global_batch(shares):
    for rows in shares:
        for whole, part in zip(_take(3), _take(3, rows=rows), strict=True):
            for key in ("image", "label", "index"):
                np.testing.assert_array_equal(whole[key][list(rows)], part[key])


def test_worker_processes_change_nothing():
    _assert_equal(_take(5), _take(5, dataclasses.replace(CONFIG, workers=2)))


def test_an_epoch_sees_every_record_once_and_shuffles_anew():
    indices = np.concatenate([b["index"] for b in _take(64)])
    first, second = indices[:512], indices[512:]
    np.testing.assert_array_equal(np.sort(first), np.arange(512))
    np.testing.assert_array_equal(np.sort(second), np.arange(512))
    assert not np.array_equal(first, second)


def test_the_same_record_is_augmented_differently_each_epoch():
    batches = _take(64)
    where = {}
    for batch in batches:
        for image, index in zip(batch["image"], batch["index"], strict=True):
            where.setdefault(int(index), []).append(image)
    differing = sum(not np.array_equal(*images) for images in where.values())
    assert differing > 450


def test_evaluation_covers_the_split_once_in_order():
    for hosts in (1, 3):
        shares = [
            list(data.eval_batches(CONFIG, batch_size=48, rows=rows))
            for rows in np.split(np.arange(48), hosts)
        ]
        assert {len(share) for share in shares} == {3}
        rows = [
            (int(i), float(m))
            for parts in zip(*shares, strict=True)
            for part in parts
            for i, m in zip(part["index"], part["mask"], strict=True)
        ]
        assert rows[:128] == [(i, 1.0) for i in range(128)]
        assert rows[128:] == [(127, 0.0)] * 16


def test_evaluation_reads_by_a_thread_for_each_worker(monkeypatch):
    together, read = threading.Barrier(6), data.ArraySource.__getitem__

    def read_when_six_do(source, i):
        if len(source) == 6:  # not what iterators of other tests still read ahead
            together.wait(timeout=60)
        return read(source, i)

    monkeypatch.setattr(data.ArraySource, "__getitem__", read_when_six_do)
    data.register_arrays("six", test=(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6)))
    config = DataConfig(source="array:six", workers=6)
    before = multiprocessing.active_children()
    batches = list(data.eval_batches(config, batch_size=1))
    assert [int(batch["index"][0]) for batch in batches] == list(range(6))
    assert multiprocessing.active_children() == before


def test_views_of_a_record_lie_together_and_the_first_is_untouched():
    config = dataclasses.replace(CONFIG, views=4, shuffle=False)
    batches = _take(2, config)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.repeat(np.arange(8), 4))
    plain = next(data.eval_batches(config, batch_size=8, split="train"))
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images[::4], plain["image"])
    assert not np.array_equal(images[1], images[0]) and not np.array_equal(images[1], images[2])
    _assert_equal(batches[1:], _take(1, config, start_step=1))
    part = _take(2, config, rows=[1, 5, 6])[1]
    np.testing.assert_array_equal(part["image"], batches[1]["image"][[1, 5, 6]])
    shuffled = _take(2, dataclasses.replace(config, shuffle=True))[1]["index"].reshape(4, 4)
    assert (shuffled == shuffled[:, :1]).all() and len(set(shuffled[:, 0])) == 4


def test_label_noise_draws_a_fraction_anew_in_training_alone():
    config = dataclasses.replace(CONFIG, label_noise=0.5, num_classes=4)
    rng = np.random.RandomState(10)
    chosen, drawn = rng.choice(512, size=256, replace=False), rng.choice(4, size=256)
    want = data.open_source(CONFIG, "train").labels.copy()
    want[chosen] = drawn

    def labels(split, config):
        batches = data.eval_batches(config, batch_size=128, split=split)
        return np.concatenate([batch["label"] for batch in batches])

    np.testing.assert_array_equal(labels("train", config), want)
    np.testing.assert_array_equal(labels("test", config), labels("test", CONFIG))
    batch = _take(1, config)[0]
    np.testing.assert_array_equal(batch["label"], want[batch["index"]])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"jitter": (0.1, 0.0, 0.0, 0.0), "channels": 1, "randaugment_layers": 0}, "want colour"),
        ({"source": "digits", "channels": 1, "randaugment_layers": 0, "image_size": 7,
          "num_classes": 10, "eval_resize": "pad"}, "makes no image smaller"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue by up to 0.6 of a turn; at most 0.5"),
        ({"source": "digits", "channels": 1, "randaugment_layers": 0, "image_size": 20,
          "num_classes": 10, "crop": "pad_to"}, "larger than a padded image"),
    ],
    ids=["colour", "pad", "hue", "pad_to"],
)  # fmt: skip
def test_what_does_not_fit_the_images_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        data.validate(dataclasses.replace(CONFIG, **settings))
