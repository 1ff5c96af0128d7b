"""A network's figures, drawn into the directory of its cell."""

import pathlib

import numpy as np

from crate_jax.data.manifolds import Manifold
from crate_jax.interpret.plots import make_figure
from crate_jax.studies.flatnet.measure import Network, Projection

SHOWN = 3000
"""Points of a scatter plot."""

STEPS = 9
"""Of an interpolation."""

MAPPED = 150
"""Points whose distances are mapped."""

DPI = 130


def draw(
    manifold: Manifold, network: Network, flat: Projection, iterations, peers, result, compare,
    directory: pathlib.Path,
) -> None:  # fmt: skip
    """All figures of a network.

    Args:
      manifold: the data.
      network: what was built.
      flat: of the features onto the dimension found.
      iterations: of the construction.
      peers: trained autoencoders by kind.
      result: the network's numbers.
      compare: the study's settings of what is compared.
      directory: where to.
    """
    _features(manifold, network, flat, directory / "features.png")
    _course(iterations, directory / "course.png")
    _spectrum(manifold.X, result, directory / "spectrum.png")
    if manifold.image_shape is not None:
        _rebuilt(manifold, network, flat, directory / "rebuilt.png")
    if compare.interpolations:
        pairs = _pairs(len(manifold.X), compare.interpolations)
        if manifold.image_shape is not None:
            _image_paths(manifold, network, flat, pairs, directory / "interpolation.png")
        else:
            _paths(manifold, network, flat, pairs, directory / "interpolation.png")
    if compare.distances and manifold.parameters is not None:
        _distances(manifold, network, peers, directory / "distances.png")


def _plane(X: np.ndarray) -> Projection:
    """Onto two coordinates to plot: the data's own where there are two, else the principal ones."""
    if X.shape[1] == 2:
        return Projection(np.zeros(2), np.eye(2))
    return Projection.of(X, 2)


def _scatter(axes, points, colour, title, labels, **style):
    axes.scatter(points[:, 0], points[:, 1], c=colour, s=8, cmap="viridis", **style)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)


def _features(manifold: Manifold, network: Network, flat: Projection, path: pathlib.Path) -> None:
    """The data, their features, and what d features give back, coloured alike."""
    chosen = np.linspace(0, len(manifold.X) - 1, min(SHOWN, len(manifold.X))).astype(int)
    X, colour, d = manifold.X[chosen], manifold.colour[chosen], len(flat.axes)
    Z, plane = network.encode(X), _plane(manifold.X)
    X_hat = network.decode(flat(Z))
    two = Projection.of(Z, 2)
    figure = make_figure(13, 4.2)
    figure.suptitle(
        f"{manifold.name}: data, features after {network.stack.depth} layers, and the data rebuilt "
        f"from the first d = {d}"
    )
    data, features, rebuilt = figure.subplots(1, 3)
    own = ("x1", "x2") if X.shape[1] == 2 else ("1st principal coordinate", "2nd")
    _scatter(data, plane.coordinates(X), colour, "data", own)
    t = two.coordinates(Z)
    _scatter(features, t, colour, "features", ("1st principal coordinate", "2nd"))
    reach = np.abs(t).max() * 1.1
    features.set(xlim=(-reach, reach), ylim=(-reach, reach))
    features.locator_params(axis="x", nbins=5)
    shown, back = plane.coordinates(X), plane.coordinates(X_hat)
    if len(X) <= 200:
        for a, b in zip(shown, back, strict=True):
            rebuilt.plot(*np.stack([a, b]).T, color="0.7", lw=0.8, zorder=1)
        rebuilt.scatter(*shown.T, color="0.7", s=5, zorder=1)
    _scatter(rebuilt, back, colour, f"rebuilt from d = {d}", own, zorder=2)
    rebuilt.set(xlim=data.get_xlim(), ylim=data.get_ylim())
    figure.savefig(path, dpi=DPI)


def _course(iterations, path: pathlib.Path) -> None:
    """Energy outside d, radius and dimension over the iterations."""
    figure = make_figure(12, 3.6)
    figure.suptitle("Course of the construction; dots are layers kept")
    energy, radius, dimension = figure.subplots(1, 3)
    index = np.array([it.index + 1 for it in iterations])
    kept = np.array([it.added for it in iterations])
    for axes, name, label in (
        (energy, "outside", "energy outside d directions / all"),
        (radius, "r", "radius / initial diameter"),
        (dimension, "d", "dimension found"),
    ):
        values = np.array([float(getattr(it, name)) for it in iterations])
        axes.plot(index, values, color="0.8", lw=0.8)
        axes.plot(index[kept], values[kept], ".", ms=4)
        axes.set(xlabel="iteration", ylabel=label)
        axes.grid(alpha=0.3)
    energy.set_yscale("log")
    dimension.set_ylim(bottom=0)
    dimension.yaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=DPI)


def _spectrum(X: np.ndarray, result: dict, path: pathlib.Path) -> None:
    """Singular values of the data and of the features, each over its first."""
    before = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)[:50]
    after = np.array(result["measures"]["singular_values"])
    figure = make_figure(6, 4)
    axes = figure.subplots()
    for name, s, marker in (("data", before, "o"), ("features", after, "s")):
        axes.plot(np.arange(1, len(s) + 1), s / max(s[0], 1e-300), marker + "-", ms=4, label=name)
    axes.axvline(result["measures"]["d"] + 0.5, color="0.5", ls="--", label="dimension found")
    axes.set(yscale="log", xlabel="index", ylabel="singular value / largest")
    axes.set_title("Singular values before and after flattening", fontsize="medium")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DPI)


def _rebuilt(manifold: Manifold, network: Network, flat: Projection, path: pathlib.Path) -> None:
    """Images, rebuilt from all features and from d, and by PCA with d coordinates."""
    chosen = np.linspace(0, len(manifold.X) - 1, 10).astype(int)
    X, d = manifold.X[chosen], len(flat.axes)
    Z, pca = network.encode(X), Projection.of(manifold.X, d)
    rows = {
        "data": X, "all features": network.decode(Z), f"d = {d} features": network.decode(flat(Z)),
        f"PCA, d = {d}": pca(X),
    }  # fmt: skip
    _image_grid(
        {name: manifold.to_images(x) for name, x in rows.items()},
        f"{manifold.name}: images and their reconstructions", path,
    )  # fmt: skip


def _image_grid(rows: dict[str, np.ndarray], title: str, path: pathlib.Path) -> None:
    columns = len(next(iter(rows.values())))
    figure = make_figure(1.1 * columns + 1.2, 1.15 * len(rows) + 0.5)
    figure.suptitle(title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=DPI)


def _pairs(N: int, count: int) -> np.ndarray:
    """So many pairs of points, ``(count, 2)``, the same for every network of N points."""
    return np.random.default_rng(0).integers(0, N, (count, 2))


def _interpolate(network: Network, flat: Projection, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Decoded straight lines between the features of two points, ``(STEPS, D)``."""
    weight = np.linspace(0, 1, STEPS)[:, None]
    Z = flat(network.encode(np.stack([a, b])))
    return network.decode((1 - weight) * Z[:1] + weight * Z[1:])


def _image_paths(manifold, network, flat, pairs, path) -> None:
    rows, weight = {}, np.linspace(0, 1, STEPS)[:, None]
    for n, (i, j) in enumerate(pairs, start=1):
        a, b = manifold.X[i], manifold.X[j]
        rows[f"blend {n}"] = manifold.to_images((1 - weight) * a[None] + weight * b[None])
        rows[f"FlatNet {n}"] = manifold.to_images(_interpolate(network, flat, a, b))
    title = f"{manifold.name}: between two images, by pixels and by d = {len(flat.axes)} features"
    _image_grid(rows, title, path)


def _paths(manifold, network, flat, pairs, path) -> None:
    """Straight lines of features, seen in the plane of the data."""
    plane, figure = _plane(manifold.X), make_figure(6, 4.6)
    axes = figure.subplots()
    shown = plane.coordinates(manifold.X[:SHOWN])
    axes.scatter(*shown.T, color="0.8", s=5, label="data")
    for n, (i, j) in enumerate(pairs):
        a, b = manifold.X[i], manifold.X[j]
        line = plane.coordinates(_interpolate(network, flat, a, b))
        axes.plot(*line.T, "o-", color=f"C{n}", ms=3, lw=1.2)
        ends = plane.coordinates(np.stack([a, b]))
        axes.plot(*ends.T, "x", color=f"C{n}", ms=8, mew=2)
    axes.plot([], [], "o-", color="0.3", ms=3, label="line of features, decoded")
    axes.plot([], [], "x", color="0.3", label="its end points in the data")
    own = ("x1", "x2") if manifold.X.shape[1] == 2 else ("1st principal coordinate", "2nd")
    axes.set(xlabel=own[0], ylabel=own[1])
    axes.set_title(f"{manifold.name}: straight lines of features, decoded", fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def _distances(manifold, network, peers, path) -> None:
    """``|f_i - f_j|^2 / |p_i - p_j|^2`` over pairs, over its median; an isometry's is 1."""
    order = np.argsort(manifold.parameters[:, 0])
    chosen = order[np.linspace(0, len(order) - 1, min(MAPPED, len(order))).astype(int)]
    X, P = manifold.X[chosen], manifold.parameters[chosen]
    features = {"FlatNet": network.encode(X)}
    features |= {kind: peer.encode(X) for kind, peer in peers.items()}
    figure = make_figure(3.6 * len(features) + 1, 4)
    figure.suptitle(
        f"{manifold.name}: squared distances of features over those of parameters (log2, over the "
        f"median)"
    )
    panels = figure.subplots(1, len(features), squeeze=False)[0]
    own = _squared_distances(P)
    apart = own > 0
    for axes, (name, Z) in zip(panels, features.items(), strict=True):
        ratio = np.where(apart, _squared_distances(Z) / np.where(apart, own, 1), np.nan)
        middle = np.nanmedian(ratio)
        with np.errstate(divide="ignore"):
            picture = axes.imshow(np.log2(ratio / middle), cmap="coolwarm", vmin=-4, vmax=4)
        spread = np.nanpercentile(np.abs(np.log2(np.maximum(ratio, 1e-300) / middle)), 90)
        axes.set_title(f"{name}: 90 % within 2^±{spread:.1f}", fontsize="medium")
        axes.set(xlabel="point, by parameter", ylabel="point, by parameter")
    figure.colorbar(picture, ax=list(panels), shrink=0.8)
    figure.savefig(path, dpi=DPI)


def _squared_distances(X: np.ndarray) -> np.ndarray:
    return np.sum((X[:, None] - X[None]) ** 2, axis=-1)


def dimension_figure(results, path: pathlib.Path) -> None:
    """Dimensions found over true ones, by FlatNet and by nearest neighbours; every network."""
    figure = make_figure(6, 4.2)
    axes = figure.subplots()
    true = np.array([result["true_dim"] for result in results], float)
    for name, key, marker, shift in (
        ("FlatNet, mode of d", "found_dim", "o", -0.12),
        ("maximum likelihood", "mle", "^", 0.0),
        ("TwoNN", "two_nn", "s", 0.12),
    ):
        found = np.array([result.get(key) for result in results], float)  # None is nan
        axes.plot(true + shift, found, marker, ms=6, alpha=0.7, label=name)
    top = true.max() + 1
    axes.plot([0, top], [0, top], color="0.5", ls="--", label="true")
    axes.set(xlabel="true dimension", ylabel="dimension found")
    axes.set_title("Dimension of Gaussian-process manifolds", fontsize="medium")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
