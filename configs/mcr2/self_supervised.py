"""MCR^2, self-supervised: every image is a class of its own, and 50 views are its samples.

    python -m crate_jax.main --config configs/mcr2/self_supervised.py --workdir D \\
        --config.data.data_dir=TFDS

``TFDS`` is where the prepared data set lies; without it TFDS's own default. A batch is 20 images,
in the order of the data set, of which view 0 is the image itself. gamma1 = 20 and gamma2 = 0.05
keep the expansion from drowning the compression. The features are clustered at the end.

Expected: no figure of the paper's could be read; the settings are its README's.
Cost: 100 epochs are 250,000 steps of a ResNet-18 on 1,000 images of 32x32; not run here.
"""

from crate_jax import models
from crate_jax.config import default
from crate_jax.recipe import choose, finish, parse_arg

DATA = {"cifar10": 10, "cifar100": 100}
"""Classes of each data set."""


def get_config(arg=None):
    """Arguments: ``data`` (cifar10, cifar100), ``smoke``, ``debug_nans``."""
    arg = parse_arg(arg, data="cifar10")
    classes = choose("data", arg.data, DATA)
    config = default()
    config.system = "mcr2"
    config.model = models.settings("resnet", variant="18ctrl")
    config.data.update(
        source=f"tfds:{arg.data}", num_classes=classes, image_size=32, channels=3, mean=(0.0,),
        std=(1.0,), crop="inception", flip=True, jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2,
        views=50, shuffle=False, workers=8,
    )  # fmt: skip
    config.mcr2.update(eps_sq=0.5, gamma1=20.0, gamma2=0.05, classes="images")
    config.optimizer.update(
        name="momentum", momentum=0.9, learning_rate=0.1, weight_decay=5e-4, decay_mask="all"
    )
    config.schedule.update(name="multistep", milestones=(30.0, 60.0))
    config.train.update(
        batch_size=1000, epochs=100.0, eval_batch_size=1000, measure_batch=0, eval_every=12_500,
        checkpoint_every=2500, log_every=100, best_metric="eval/rate_reduction",
    )  # fmt: skip
    config.evaluate.update(
        evaluators=("kmeans", "spectral", "ensc", "nearest_subspace", "knn", "linear_svm"),
        cluster_samples=10_000,
    )
    return finish(config, arg)
