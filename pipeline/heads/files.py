"""Head files: all that is needed to use a head, and no patient data. Only this module writes and reads them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hoarfrost.evaluation import OperatingPoint
from hoarfrost.evaluation.conformal import ConformalScores
from hoarfrost.evaluation.novelty import NoveltyReference
from hoarfrost.features.cache import Header
from hoarfrost.features.decoding.views import parse_views
from hoarfrost.features.errors import RunError
from hoarfrost.features.fingerprint import Fingerprint, weights_digest
from hoarfrost.heads.committee import Committee
from hoarfrost.heads.earlier import member_prefix, upgraded
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import Columns, Standardise
from hoarfrost.heads.seen import NO_DIGESTS, Digests
from hoarfrost.heads.specs import parse_head
from hoarfrost.heads.views import columns_of, member_views
from hoarfrost.runs import from_json, to_json

FORMAT = "hoarfrost-head"
FORMAT_VERSION = 4
READ_VERSIONS = (2, 3, 4)
IMAGE = "image"  # a unit, see `Validated`
KEY = "hoarfrost"  # in the metadata
DIGEST = "sha256"
LARGEST_ERROR = 1e-9  # of the sum of the members' weights
SEEN = "seen"
NOVELTY = ("mean", "directions", "variances")


@dataclass(frozen=True)
class _Fixed:
    """The part of `Validated` that is not an array."""

    unit: str
    n: int
    temperatures: tuple[float, ...]
    points: tuple[tuple[OperatingPoint, ...], ...]
    prevalences: tuple[float, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Validated(_Fixed):
    """What validation fixed for one head: for images, or for patients whose images' probabilities are combined.

    Attributes
    ----------
    unit : str
        "image"; for patients how their images are combined, "mean" or "max".
    n : int
        Images, or patients, of the validation split.
    temperatures : tuple of float
        One; in a multi-label task one per label.
    points : tuple of tuples of OperatingPoint
        Of the positive class, or of each label; empty with more than two classes.
    prevalences : tuple of float
        The share of class 1 of two, or of each label, for which probabilities are calibrated; empty in files of earlier
        versions, and with more than two classes.
    calibrations : tuple of ConformalScores
        For prediction sets, see `hoarfrost.evaluation.conformal.calibrate_classes`.
    """

    calibrations: tuple[ConformalScores, ...]


@dataclass(frozen=True)
class SavedMember:
    """One training of a head, or of one of the heads that predict together.

    Attributes
    ----------
    spec : HeadSpec
        With the values that were chosen, as in "logistic,C=0.01".
    seed, fold : int
    weight : float
        In the mean of the members' probabilities.
    module : nn.Module
        From embeddings (B, D) to logits (B, C): `Standardise`, and the layers that `spec` builds.
    """

    spec: HeadSpec
    seed: int
    fold: int
    weight: float
    module: nn.Module


@dataclass(frozen=True)
class SavedHead:
    """A trained head with what is needed to use it.

    Attributes
    ----------
    name : str
        What the run calls it: "mlp:256", or "mean" for a mean over several kinds.
    members : tuple of SavedMember
        The head's probabilities are the weighted mean of theirs.
    names : tuple of str
        Of the C classes, or labels.
    header : Header
        Describes the encoder that the embeddings must come from.
    per_patient : "mean", "max" or None
        How a patient's images were combined, if the run scored patients.
    validated : tuple of Validated
        For images, and for patients if they were known.
    distances : ConformalScores
        Those of validation images.
    seen : ndarray (n,) int64
        Digests of the images that the head learned from or was validated on, ascending, see `hoarfrost.heads.seen`; empty
        where they were omitted, and in files of earlier versions.

    Raises
    ------
    ValueError
        If there are no members, or their weights are not above zero with the sum one.
    """

    name: str
    members: tuple[SavedMember, ...]
    names: tuple[str, ...]
    is_multilabel: bool
    header: Header
    per_patient: str | None
    validated: tuple[Validated, ...]
    novelty: NoveltyReference
    distances: ConformalScores
    seen: Digests = field(default_factory=NO_DIGESTS.copy, kw_only=True)

    def __post_init__(self) -> None:
        weights = [member.weight for member in self.members]
        if not all(weight > 0 for weight in weights) or not abs(sum(weights) - 1) < LARGEST_ERROR:
            raise ValueError("the members' weights must be above zero and have the sum one")

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """The head's columns in predictions.csv with their class numbers; of two classes only the positive one."""
        if len(self.names) == 2 and not self.is_multilabel:
            return ((self.name, 1),)
        return tuple((f"{self.name}:{name}", number) for number, name in enumerate(self.names))

    @property
    def committee(self) -> Committee:
        """The members as one module, in float32."""
        modules, weights = zip(*((member.module, member.weight) for member in self.members), strict=True)
        views = [member_views(member.spec, self.views) for member in self.members]
        return Committee(modules, weights, is_multilabel=self.is_multilabel, views=views)

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views that embeddings are needed of, in order; novelty is measured in the first."""
        return self.header.view_names


@dataclass(frozen=True)
class _Member:
    """A member's description: `head` has all options, so that it stays the same when defaults change."""

    head: str
    seed: int
    fold: int
    weight: float


@dataclass(frozen=True)
class _Description:
    """A head file's description of itself, as JSON."""

    format: str
    format_version: int
    head: str
    members: tuple[_Member, ...]
    classes: tuple[str, ...]
    activation: str
    n_inputs: int
    fingerprint: str
    embeddings: Fingerprint
    weights: str
    weights_origin: str
    per_patient: str | None
    novelty_rest: float
    validated: tuple[_Fixed, ...]
    views: tuple[str, ...] = ()


def head_bytes(head: SavedHead) -> bytes:
    """Return the content of a head file; the same head gives the same bytes."""
    description = _Description(
        FORMAT, FORMAT_VERSION, head.name,
        members=tuple(_Member(one.spec.full_name, one.seed, one.fold, one.weight) for one in head.members),
        classes=head.names,
        activation="sigmoid" if head.is_multilabel else "softmax",
        n_inputs=head.header.dim,
        fingerprint=head.header.fingerprint.digest,
        embeddings=head.header.fingerprint,
        weights=head.header.weights,
        weights_origin=head.header.weights_origin,
        per_patient=head.per_patient,
        novelty_rest=head.novelty.rest,
        validated=tuple(
            _Fixed(one.unit, one.n, one.temperatures, one.points, prevalences=one.prevalences) for one in head.validated
        ),
        views=head.header.views,
    )  # fmt: skip
    # One JSON text: a label may hold any character, even one that is not UTF-8, and safetensors
    # writes several entries in random order, so that the same head would not be the same bytes.
    # Copied, as safetensors refuses tensors in the same memory, which members of a fold may share.
    tensors = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in _tensors(head)}
    content_json = to_json(description)
    metadata = {KEY: json.dumps({**content_json, DIGEST: content_digest(content_json, tensors)}, sort_keys=True)}
    content: bytes = save(tensors, metadata=metadata)
    return content


def content_digest(description: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of the whole content of a head file; it reveals a flipped bit."""
    text = json.dumps({key: value for key, value in description.items() if key != DIGEST}, sort_keys=True)
    digest = sha256(text.encode())
    digest.update(weights_digest((name, tensor.numpy()) for name, tensor in tensors.items()).encode())
    return digest.hexdigest()


def _tensors(head: SavedHead) -> Iterator[tuple[str, Tensor]]:
    for i, member in enumerate(head.members):
        for name, tensor in member.module.state_dict().items():
            yield f"{member_prefix(i)}{name}", _shortest(tensor)
    yield from ((f"novelty.{name}", torch.from_numpy(getattr(head.novelty, name))) for name in NOVELTY)
    if len(head.seen):
        yield SEEN, torch.from_numpy(head.seen)
    for name, calibration in _calibrations(head.validated, head.distances):
        yield f"{name}.scores", torch.from_numpy(calibration.scores)
        yield f"{name}.weights", torch.from_numpy(calibration.weights)


def _shortest(tensor: Tensor) -> Tensor:
    """Return the tensor in float16 if that holds all of its values exactly."""
    halved = tensor.half()
    return halved if (halved.to(tensor.dtype) == tensor).all() else tensor


def _calibrations(validated: Iterable[Validated], distances: ConformalScores) -> Iterator[tuple[str, ConformalScores]]:
    yield "distances", distances
    for one in validated:
        yield from ((f"conformal.{one.unit}.{i}", each) for i, each in enumerate(one.calibrations))


# -- reading ------------------------------------------------------------------------------------------------------------


def read_head(path: Path) -> SavedHead:
    """Read a head file; no code in it is run.

    Raises
    ------
    RunError
        If it is missing, is not a head file, has a newer or older format, or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"not a readable .safetensors ({error})"
        raise RunError(f"{path}: {reason}. Name a head file, which `hoarfrost train` writes to RUN/heads/.") from error
    try:
        return _head(*_described(path, text, tensors))
    except KeyError as error:
        raise _damaged(path, f"{error} is missing") from error
    # Conversions raise these for content that this program did not write.
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(f"{path}: the head file is damaged: {reason}. Train again, or copy the file again.")


def _described(path: Path, text: str | None, tensors: dict[str, Tensor]) -> tuple[_Description, dict[str, Tensor]]:
    """Return the description and the tensors in this version's layout, if the content is whole."""
    if text is None:
        raise RunError(f"{path}: not a hoarfrost head (its metadata do not describe one). Name a file in RUN/heads/.")
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise RunError(f"{path}: not a hoarfrost head, but {content['format']!r}. Name a file in RUN/heads/.")
    version = int(content["format_version"])
    if version > FORMAT_VERSION:
        raise RunError(
            f"{path} was written by a newer hoarfrost (head format {version}, this one reads {FORMAT_VERSION}). "
            "Upgrade hoarfrost, or train again."
        )
    if version not in READ_VERSIONS:
        raise RunError(
            f"{path} was written by an older hoarfrost (head format {version}) without thresholds and calibration. "
            "Train again; this needs only the cache."
        )
    if content[DIGEST] != content_digest(content, tensors):
        raise ValueError("its content does not match its checksum")
    if version == READ_VERSIONS[0]:
        content, tensors = upgraded(content, tensors)
    return from_json(content, _Description), tensors


def _head(description: _Description, tensors: Mapping[str, Tensor]) -> SavedHead:
    if description.n_inputs < 1 or len(description.classes) < 1 or not description.members:
        raise ValueError("it does not describe a head on embeddings")
    if description.embeddings.digest != description.fingerprint:
        raise ValueError("its fingerprint does not match the embeddings that it describes")
    if len(set(description.classes)) < len(description.classes):
        raise ValueError("two of its classes have the same name")
    multilabel = {"sigmoid": True, "softmax": False}[description.activation]
    n_inputs, n_classes = description.n_inputs, len(description.classes)
    header = Header(
        description.embeddings, n_inputs, description.weights, description.weights_origin, views=description.views
    )
    columns = _columns(header)
    members = []
    for i, one in enumerate(description.members):
        spec = parse_head(one.head)
        member_views(spec, header.view_names)  # refused now
        of_spec = columns_of(spec.layer_numbers, columns)
        module = _module(spec, n_inputs, of_spec, n_classes, member_prefix(i), tensors)
        members.append(SavedMember(spec, one.seed, one.fold, one.weight, module))
    n_calibrations = n_classes if multilabel else 1
    n_points = n_calibrations if multilabel or n_classes == 2 else 0
    validated = tuple(_validated(fixed, n_calibrations, n_points, tensors) for fixed in description.validated)
    if not validated or validated[0].unit != IMAGE:
        raise ValueError("thresholds and calibration for images are missing")
    return SavedHead(
        description.head, tuple(members), description.classes, multilabel,
        header,
        description.per_patient,
        validated,
        _novelty(description.novelty_rest, n_inputs, tensors),
        _calibration("distances", tensors),
        seen=_seen(tensors),
    )  # fmt: skip


def _seen(tensors: Mapping[str, Tensor]) -> Digests:
    if SEEN not in tensors:
        return NO_DIGESTS
    found: Digests = tensors[SEEN].numpy()
    if found.ndim != 1 or found.dtype != np.int64 or (found[1:] < found[:-1]).any():
        raise ValueError(f"{SEEN} does not contain ascending digests")
    return found


def _columns(header: Header) -> Mapping[int, slice]:
    """Return the columns of each layer, none if there is one, after a check that views and layers fit the embeddings."""
    layers, views = header.fingerprint.layers, header.views
    if views and tuple(view.name for view in parse_views(",".join(views), header.fingerprint.encoder)) != views:
        raise ValueError(f"its views are not stated by their shortest names, each once: {', '.join(views)}")
    if not layers:
        return {}
    encoder = header.fingerprint.encoder
    if header.dim != encoder.dim_of(layers):
        raise ValueError(f"it has embeddings of {header.dim} numbers, and layers of {encoder.dim_of(layers)}")
    return encoder.columns_of(layers)


def _module(
    spec: HeadSpec, n_inputs: int, columns: Columns, n_classes: int, prefix: str, tensors: Mapping[str, Tensor]
) -> nn.Module:
    n_inputs = sum(end - first for first, end in columns) if columns else n_inputs
    with torch.device("meta"):  # shapes alone: a damaged file may state any size
        standardise = Standardise(torch.empty(n_inputs), torch.empty(n_inputs), spec.transform, columns)
        like = nn.Sequential(standardise, spec.build(n_inputs, n_classes))
    state = {
        name: _checked(prefix + name, tuple(meta.shape), tensors, (torch.float32, torch.float16))
        for name, meta in like.state_dict().items()
    }
    if (state["0.std"] <= 0).any():
        raise ValueError(f"{prefix}0.std must be above zero")
    like.load_state_dict(state, assign=True)
    return like.eval()


def _checked(
    name: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, Tensor],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> Tensor:
    tensor = tensors[name]
    if tensor.dtype not in dtypes or tuple(tensor.shape) != shape or not tensor.isfinite().all():
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is not a finite {expected} tensor of shape {shape}")
    return tensor.float()


def _novelty(rest: float, n_inputs: int, tensors: Mapping[str, Tensor]) -> NoveltyReference:
    k = len(tensors["novelty.directions"])
    shapes: dict[str, tuple[int, ...]] = {"mean": (n_inputs,), "directions": (k, n_inputs), "variances": (k,)}
    found = {name: _checked(f"novelty.{name}", shape, tensors).numpy() for name, shape in shapes.items()}
    if not rest > 0 or not (found["variances"] > 0).all():
        raise ValueError("the variances for novelty must be above zero")
    return NoveltyReference(rest=rest, **found)


def _validated(fixed: _Fixed, n_calibrations: int, n_points: int, tensors: Mapping[str, Tensor]) -> Validated:
    if not all(0 < value < math.inf for value in fixed.temperatures) or len(fixed.temperatures) != n_calibrations:
        raise ValueError(f"temperatures for {fixed.unit}: {n_calibrations} needed, each above zero")
    primary = [points[0].threshold if points else None for points in fixed.points]
    if len(primary) != n_points or not all(one is not None and math.isfinite(one) for one in primary):
        raise ValueError(f"operating points for {fixed.unit}: {n_points} needed, each with a threshold")
    calibrations = tuple(_calibration(f"conformal.{fixed.unit}.{i}", tensors) for i in range(n_calibrations))
    return Validated(fixed.unit, fixed.n, fixed.temperatures, fixed.points, calibrations, prevalences=fixed.prevalences)


def _calibration(name: str, tensors: Mapping[str, Tensor]) -> ConformalScores:
    scores, weights = (tensors[f"{name}.{part}"].double().numpy() for part in ("scores", "weights"))
    if scores.ndim != 1 or scores.shape != weights.shape or not np.isfinite(scores).all():
        raise ValueError(f"{name} does not contain scores and weights of one length")
    if (np.diff(scores) < 0).any() or not ((weights > 0) & (weights <= 1)).all():
        raise ValueError(f"{name} contains unsorted scores, or weights outside 0 to 1")
    return ConformalScores(scores, weights)
