"""Heads: the grammar of their specifications, their names, and the modules."""

import contextlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import (
    MAX_DEPTH,
    MAX_PARAMETERS,
    MAX_WIDTH,
    TRANSFORMS,
    HeadSpec,
    Linear,
    Logistic,
    Mlp,
    Quadratic,
)
from hoarfrost.heads.specs import count_parameters, parse_head, parse_heads


def n_weights(shape: tuple[int, int]) -> int:
    width, depth = shape
    return width**2 * (depth - 1)


shapes = st.just((0, 0)) | st.tuples(st.integers(1, MAX_WIDTH), st.integers(1, MAX_DEPTH)).filter(
    lambda shape: n_weights(shape) <= MAX_PARAMETERS
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@st.composite
def head_specs(draw: st.DrawFn) -> HeadSpec:
    width, depth = draw(shapes)
    transform, members = draw(st.sampled_from(TRANSFORMS)), draw(st.integers(1, 1000))
    if draw(st.booleans()):
        return draw(st.sampled_from([Logistic, Quadratic]))(C=draw(st.none() | positive), transform=transform)
    lr, weight_decay = draw(positive), draw(st.just(0.0) | positive)
    if not depth:
        return Linear(lr=lr, weight_decay=weight_decay, transform=transform, members=members)
    dropout = draw(st.floats(0, 1, exclude_max=True))
    return Mlp(
        width=width,
        depth=depth,
        dropout=dropout,
        lr=lr,
        weight_decay=weight_decay,
        transform=transform,
        members=members,
    )


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("linear", Linear()),
        ("mlp:256", Mlp(width=256)),
        ("mlp:256x1", Mlp(width=256)),
        ("mlp:256x6", Mlp(width=256, depth=6)),
        (
            "mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2",
            Mlp(width=256, depth=2, dropout=0.2, lr=1e-3, weight_decay=1e-2),
        ),
        ("mlp:256x2,weight_decay=0,lr=3E-4", Mlp(width=256, depth=2, lr=3e-4, weight_decay=0)),
        (" linear , lr = 0.1 ", Linear(lr=0.1)),
        ("linear,weight_decay=-0", Linear(weight_decay=0)),
        ("linear,transform=unit,members=5", Linear(transform="unit", members=5)),
        ("mlp:8,members=1,transform=none", Mlp(width=8, members=1, transform="none")),
        ("logistic", Logistic()),
        ("logistic,C=auto", Logistic()),
        ("quadratic,C=3e0,transform=none", Quadratic(C=3.0, transform="none")),
        (f"mlp:{MAX_WIDTH}", Mlp(width=MAX_WIDTH)),
        (f"mlp:1x{MAX_DEPTH}", Mlp(width=1, depth=MAX_DEPTH)),
    ],
)
def test_specification_of_the_grammar_is_understood(text: str, spec: HeadSpec) -> None:
    assert parse_head(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "mlp", "mlp:", "mlp:x6", "mlp:256x", "mlp:8x6x2", "mlp:-1", "mlp:2.5", "mlp:²", "mlp:٣", "Linear", "linear:2"],
)
def test_what_is_no_head_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(
        TrainingError,
        match=r"not a head specification\. Expected logistic, linear, mlp:WIDTH or mlp:WIDTHxDEPTH, quadratic,",
    ):
        parse_head(text)


@pytest.mark.parametrize("text", ["linear,", "linear,lr", "linear,momentum=0.9", "mlp:256,=1", "mlp:256 lr=1"])
def test_what_is_no_option_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(TrainingError, match=r"Expected logistic, linear, .*dropout=0\.2,lr=1e-3,weight_decay=1e-2"):
        parse_head(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp:0", "width must be 1 to 65536, depth 1 to 64"),
        ("mlp:65537", "width must be 1 to 65536, depth 1 to 64"),
        ("mlp:8x0", "width must be 1 to 65536, depth 1 to 64"),
        ("mlp:8x65", "width must be 1 to 65536, depth 1 to 64"),
        ("mlp:" + "9" * 5000, "width must be 1 to 65536"),  # more digits than Python turns into an int
        ("mlp:8x" + "9" * 5000, "depth 1 to 64"),
        ("mlp:65536x64", r"64 layers of 65536 are more than 100,000,000 weights\. Use a smaller width or depth"),
        ("mlp:8,dropout=1", "dropout must be from 0 to below 1, not 1"),
        ("mlp:8,dropout=-0.1", "dropout must be from 0 to below 1, not -0.1"),
        ("mlp:8,dropout=nan", "dropout must be from 0 to below 1, not nan"),
        ("linear,lr=0", "lr must be above 0, not 0"),
        ("linear,lr=-1", "lr must be above 0, not -1"),
        ("linear,lr=inf", "lr must be above 0, not inf"),
        ("linear,weight_decay=-1", "weight_decay must be 0 or above, not -1"),
        ("linear,weight_decay=inf", "weight_decay must be 0 or above, not inf"),
        ("linear,lr=fast", "lr=fast is not a number"),
        ("linear,lr=", "lr= is not a number"),
        ("linear,lr=1,lr=2", r"lr appears twice\. Use each option once"),
        ("linear,dropout=0.3", "a linear head has no hidden layer, so dropout does not apply"),
        ("logistic,lr=1e-3", "it is trained to convergence, so lr does not apply. Omit lr, or use C"),
        ("mlp:8,C=1", "mlp has no C. Omit it"),
        ("linear,members=0", "members must be a whole number from 1 to 1000, not 0"),
        ("linear,members=2.5", "members must be a whole number from 1 to 1000, not 2.5"),
        ("linear,transform=cube", "transform must be none, sqrt or unit, not cube"),
        ("logistic,C=0", "C must be auto or above 0, not 0"),
        ("logistic,C=no", "C=no is not a number"),
        ("linear,C=1", r"linear has no C\. Omit it"),
        ("linear,lr=auto", "lr=auto is not a number"),
        ("linear,transform=log", "transform must be none, sqrt or unit, not log"),
        ("mlp:8,members=1.5", "members must be a whole number from 1 to 1000, not 1.5"),
        ("quadratic,lr=0.1", r"it is trained to convergence, so lr does not apply\. Omit lr, or use C"),
        ("linear,dropout=0.5", "a linear head has no hidden layer, so dropout does not apply.* use mlp:256"),
    ],
    ids=lambda value: value[:24],
)
def test_value_out_of_range_is_refused_with_its_range(text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        parse_head(text)


@given(st.text() | st.text("linear,mlp:0123456789x=.e-+_ dropuwgthcay"))
def test_any_text_is_a_head_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(TrainingError):
        spec = parse_head(text)
        assert parse_head(spec.name) == spec


@given(head_specs())
@example(Linear(lr=0.0012345678))
@example(Linear(lr=1e20))
def test_name_reads_back_as_the_same_head_with_the_same_name(spec: HeadSpec) -> None:
    assert parse_head(spec.name) == spec
    assert parse_head(spec.name).name == spec.name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mlp:256x1,lr=1e-3", "mlp:256"),
        ("linear,weight_decay=1.00", "linear"),
        ("linear,lr=1.0", "linear,lr=1"),
        ("mlp:8,weight_decay=0,dropout=.5", "mlp:8,dropout=0.5,weight_decay=0"),
        ("mlp:8,members=20,transform=sqrt", "mlp:8"),
        ("logistic,transform=unit,C=0.010", "logistic,C=0.01,transform=unit"),
    ],
)
def test_name_is_the_shortest_specification(text: str, name: str) -> None:
    assert parse_head(text).name == name


@given(head_specs())
def test_slug_is_a_safe_file_name(spec: HeadSpec) -> None:
    assert set(spec.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-+.=_C")
    assert spec.slug[0].isalpha()
    assert len(spec.slug) < 100


@given(head_specs(), head_specs())
@example(Linear(lr=1e20), Linear(lr=1e-20))
@example(Linear(lr=0.0012345678), Linear(lr=0.0012345679))
def test_different_heads_have_different_slugs(one: HeadSpec, other: HeadSpec) -> None:
    assert (one == other) == (one.slug == other.slug)


def test_no_heads_asked_for_are_the_three_defaults() -> None:
    assert [spec.name for spec in parse_heads(())] == ["logistic", "mlp:256", "quadratic"]


@pytest.mark.parametrize("twice", [("linear", "linear"), ("mlp:256", "mlp:256x1,lr=1e-3")], ids=str)
def test_same_head_twice_is_refused_however_it_is_spelled(twice: tuple[str, str]) -> None:
    with pytest.raises(TrainingError, match=r"--head (linear|mlp:256) appears twice\. Use each head once"):
        parse_heads(twice)


@pytest.mark.parametrize(
    ("text", "n_parameters"),
    [("linear", 1_026), ("mlp:256", 131_842), ("mlp:256x6", 460_802), ("mlp:256x6,dropout=0.2", 460_802)],
)
def test_head_has_the_parameters_of_its_arithmetic(text: str, n_parameters: int) -> None:
    assert count_parameters(parse_head(text).build(512, 2)) == n_parameters


def test_head_gives_one_logit_per_class() -> None:
    assert parse_head("mlp:8x2").build(512, 3)(torch.zeros(5, 512)).shape == (5, 3)


def test_dropout_follows_every_hidden_layer() -> None:
    kinds = [type(layer).__name__ for layer in parse_head("mlp:8x2,dropout=0.2").build(512, 2)]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


def test_a_penalised_head_stands_for_one_of_each_c() -> None:
    path = parse_head("logistic").candidates()
    assert [spec.C for spec in path] == list(Logistic.PATH)
    assert {spec.stack_key for spec in path} == {Logistic().stack_key}
    assert parse_head("quadratic,C=2").candidates() == (Quadratic(C=2.0),)
    assert Logistic(C=1.0).stack_key != Logistic(C=1.0, transform="unit").stack_key != Quadratic(C=1.0).stack_key
    assert parse_head("mlp:8").candidates() == (Mlp(width=8),)
