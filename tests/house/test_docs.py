"""README.md and docs/: their commands run as they stand, their links lead somewhere, and nothing is left out."""

import configparser
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.support.commands import ROOT, RunPython
from tests.support.documented import README, Runner, Step, pages, recorded, steps_of
from tests.support.examples import write_examples

# What is not run here, by how a line begins: the test that runs the like of it.
ELSEWHERE = {
    "make report": "house/test_main_job::test_make_report_alone_does_everything_on_the_demo_set",
    "make train": "house/test_main_job::test_train_needs_no_image_and_no_forward_pass",
    "hoarfrost extract /mnt/": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "ray ": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "hoarfrost train --cache /mnt/": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "hoarfrost report --run runs/chest": "house/test_main_job::test_make_report_alone_does_everything_on_the_demo_set",
    "hoarfrost serve": "inference/test_serve_run::test_dropped_image_shows_answer_map_and_nearest_training_images",
    "curl ": "inference/test_serve_run::test_two_hundred_requests_of_eight_clients_are_all_answered_as_predict_answers",
    "pip install": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
    "pip wheel": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
    "cpu/bin/pip install .": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
    "hoarfrost extract busi/": "extraction/test_region_views::test_masks_of_busi_from_extract_to_predict",
    "hoarfrost train --cache busi.h5": "extraction/test_region_views::test_masks_of_busi_from_extract_to_predict",
    "hoarfrost cache import uni": "exchange/test_formats::test_each_format_gives_the_same_embeddings_and_a_sound_cache",
    "hoarfrost train --cache uni.h5": "exchange/test_in_use::test_run_records_where_the_embeddings_came_from",
    "hoarfrost cache export images.h5": "exchange/test_formats::test_each_format_gives_the_same_embeddings_and_a_sound_cache",
    "hoarfrost train --cache resnet.h5": "experiment/test_several_caches::test_embeddings_of_an_image_are_side_by_side",
    "hoarfrost predict new-resnet.h5": "experiment/test_several_caches::test_prediction_takes_both_caches_in_any_order",
    "hoarfrost train --cache xrays.h5": "house/test_docs::test_a_pages_commands_run_in_their_order",  # docs/recipes.md
    "eval ": "house/test_docs::test_completion_is_what_the_page_says",
}
BY_OTHERS = ("make test", "make bench", "make setup LOCKED=1", "python3 -m venv cpu")  # .ci/run; by hand; Python's own
NEVER = ("cpu/bin/pip install torch torchvision --index-url ",)  # which the page says
SHELL = ("cut ", "grep ", "head ", "mkdir ")  # beside hoarfrost's own commands

PROSE_CHARACTERS = 120
README_LINES, README_BYTES = 200, 12_288
README_COMMANDS = {"demo", "inspect", "extract", "train", "report", "predict", "explain", "export"}

needs_onnx = pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


ALL = {page.name: text_of(page) for page in pages()}
EVERYTHING = "\n".join(ALL.values())
LINES = [step.source for text in ALL.values() for step in steps_of(text) if step.kind != "python"]


def runs_here(step: Step) -> bool:
    return step.kind == "python" or not step.source.startswith((*ELSEWHERE, *BY_OTHERS, *NEVER))


# -- The commands --------------------------------------------------------------------------------------------------------


def run_page(page: str, place: Path, host: str = "https://host") -> set[str]:
    """Run what a page shows, in its order; return which commands of hoarfrost ran."""
    runner, ran = Runner(place), set()
    for step in filter(runs_here, steps_of(ALL[page])):
        moved = Step(step.kind, step.source.replace("https://host", host), step.output)
        status, printed = runner.run(moved)
        assert bool(status) == step.fails(ALL[page]), (page, step.source, printed)
        ran |= {step.source.split()[1]} if step.source.startswith("hoarfrost ") else set()
    return ran


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with what the pages take for granted.

    Meanwhile untrained weights stand for ImageNet's, and trainings are short: what a command does is shown, not how well.
    """
    from hoarfrost.features.encoder import backbone
    from hoarfrost.features.encoder.registry import RESNET18, EncoderSpec
    from hoarfrost.training import plan
    from hoarfrost.training.references import REFERENCES, fit_references

    load, place = backbone.load_weights, tmp_path_factory.mktemp("readme")
    untrained = load("random:0", RESNET18)

    def load_untrained(spec: str, encoder: EncoderSpec) -> backbone.Weights:
        spec = "random:0" if spec == "imagenet" else spec
        return untrained if (spec, encoder) == ("random:0", RESNET18) else load(spec, encoder)

    write_examples(place)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backbone, "load_weights", load_untrained)
        patched.setattr(plan, "PASSES", 1)
        patched.setattr(plan, "FEWEST_STEPS", 10)
        patched.setattr(fit_references, "__kwdefaults__", {"kinds": REFERENCES[:2]})  # of five
        assert run_page("README.md", place) == README_COMMANDS
        shutil.copy(place / "runs" / "demo" / "heads" / "logistic.safetensors", place)
        yield place


@pytest.fixture
def store(after_readme: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the images where `s3://archive/chest` is."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3

    from hoarfrost.features.files import remote

    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    remote._opened.cache_clear()
    client = boto3.Session().client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="archive")
    for file in (after_readme / "images").rglob("*.png"):
        client.upload_file(str(file), "archive", f"chest/{file.relative_to(after_readme / 'images')}")
    yield
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    server.stop()


@pytest.fixture
def host(after_readme: Path) -> Iterator[str]:
    """Serve what `https://host` has; give its URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(after_readme))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_onnx
def test_the_readmes_commands_run_in_their_order(after_readme: Path) -> None:
    products = (
        "maps/explanations.json",
        "demo.onnx",
        "runs/demo/report.html",
        "new.csv",
        "new_patients.csv",
        "runs/first/report.html",
        "archive.h5",
    )
    assert [name for name in products if not (after_readme / name).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_onnx
@pytest.mark.parametrize(
    "page", [name for name, text in ALL.items() if name != "README.md" and any(map(runs_here, steps_of(text)))]
)
def test_a_pages_commands_run_in_their_order(
    page: str, after_readme: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = Path(shutil.copytree(after_readme, tmp_path / "place"))
    remote = "://" in "".join(step.source for step in steps_of(ALL[page]))
    if remote:
        request.getfixturevalue("store")
    run_page(page, place, *([request.getfixturevalue("host")] if remote else []))


def test_every_line_is_run_here_or_by_the_test_that_is_named_or_said_to_be_run_by_none() -> None:
    for begins in (*ELSEWHERE, *BY_OTHERS, *NEVER, *SHELL):
        assert any(line.startswith(begins) for line in LINES), begins
    known = ("hoarfrost ", *ELSEWHERE, *BY_OTHERS, *NEVER, *SHELL)
    assert [line for line in LINES if not line.startswith(known)] == []
    for named in ELSEWHERE.values():
        file, test = named.split("::")
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_completion_is_what_the_page_says(run_python: RunPython, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert f"{shell}_source" in ALL["install.md"]
        monkeypatch.setenv("_HOARFROST_COMPLETE", f"{shell}_source")
        output = run_python("-c", "from hoarfrost.cli import main; main(prog_name='hoarfrost')")
        assert output.status == 0
        assert "hoarfrost" in output.stdout


# -- Recorded outputs ----------------------------------------------------------------------------------------------------

PAGE = """Before.

```console
$ hoarfrost one \\
    --two
old
older
$ hoarfrost bad
Error: no
```

```python
print(1)
```

```text
old
```

```sh
hoarfrost three     # a comment
```

After.
"""


def test_steps_of_a_page_are_its_commands_in_their_order() -> None:
    assert [(step.kind, step.source, step.fails(PAGE)) for step in steps_of(PAGE)] == [
        ("console", "hoarfrost one --two", False),
        ("console", "hoarfrost bad", True),
        ("python", "print(1)\n", False),
        ("sh", "hoarfrost three", False),
    ]


def test_recording_replaces_outputs_and_nothing_else() -> None:
    new = {"hoarfrost one --two": (0, "new\n"), "hoarfrost bad": (1, "Error: not\n"), "print(1)\n": (0, "1\n")}
    again = recorded(PAGE, lambda step: new[step.source])
    assert again == PAGE.replace("old\nolder\n", "new\n").replace("Error: no\n", "Error: not\n").replace("old\n", "1\n")
    assert recorded(again, lambda step: new[step.source]) == again


def test_recording_stops_at_a_command_that_fails_unseen() -> None:
    with pytest.raises(SystemExit, match=r"hoarfrost one --two\nended with status 1"):
        recorded(PAGE, lambda _: (1, "Error: no\n"))


def test_outputs_have_no_progress_and_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    status, printed = Runner(tmp_path).run(Step("console", "hoarfrost extract nowhere --cache a/c.h5"))
    assert (status, printed.splitlines()[0][:15]) == (1, "Error: nowhere:")
    source = f"print('{tmp_path}/a', '{sys.prefix}/b')\nprint('3/4 images, 5 images/s, 0 s left')"
    assert Runner(tmp_path).run(Step("python", source)) == (0, "/data/a .venv/b\n")


def test_every_command_with_an_output_has_it() -> None:
    silent = ("mkdir ",)
    empty = [
        (name, step.source)
        for name, text in ALL.items()
        for step in steps_of(text)
        if step.output is not None
        and step.output[0] == step.output[1]
        and not step.source.startswith(("head -c", *silent))
    ]
    assert empty == []


def test_no_path_of_the_machine_that_recorded_is_left() -> None:
    assert re.findall(r"(?:/tmp/|/root|/home/\w)\S*", EVERYTHING) == []


# -- Links and form ------------------------------------------------------------------------------------------------------


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as forges and mkdocs make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def links_of(page: Path) -> Iterator[tuple[Path, str]]:
    """Return where a page's links within the repository lead: file and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    there = [(file, anchor) for file, anchor in links_of(page)]
    assert [str(file) for file, _ in there if not file.is_file()] == []
    assert [(file.name, anchor) for file, anchor in there if anchor and anchor not in anchors_of(text_of(file))] == []


def test_every_page_is_in_the_navigation_and_reached_from_the_readme() -> None:
    there = {page.name for page in pages()[1:]}
    configuration = text_of(ROOT / "docs" / "site" / "mkdocs.yml")
    assert set(re.findall(r": ([\w-]+\.md)$", configuration, re.MULTILINE)) == there
    reached = {file.name for page in (README, ROOT / "docs" / "index.md") for file, _ in links_of(page)}
    assert there - reached <= {"index.md", "changelog.md"}


def long_lines(text: str) -> list[str]:
    """Return lines of prose that are too long; code, tables and images are not prose."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [
        line for line in plain.splitlines() if len(line) > PROSE_CHARACTERS and line.strip()[:1] not in ("|", "!", "<")
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    assert long_lines(text_of(page)) == []


def test_readme_is_short() -> None:
    assert len(ALL["README.md"].splitlines()) <= README_LINES
    assert README.stat().st_size <= README_BYTES


def test_readme_says_early_what_it_is_not() -> None:
    begin = "\n".join(ALL["README.md"].splitlines()[:30])
    assert "Research use only. Not a medical device." in begin
    assert "It is not for you if" in begin


# -- Completeness --------------------------------------------------------------------------------------------------------


def test_extras_are_those_that_there_are_and_all_are_named() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(setup["options.extras_require"])
    assert {
        one for names in re.findall(r"(?:hoarfrost|\.)\[([\w,]+)\]", EVERYTHING) for one in names.split(",")
    } <= extras
    assert {extra for extra in extras if f"| `{extra}` |" not in ALL["install.md"]} == set()


def options_of(command: click.Command, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return each command's options, those of the commands below it too, each with all its names."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield name, (*parameter.opts, *parameter.secondary_opts)
    for below, other in command.commands.items() if isinstance(command, click.Group) else ():
        yield from options_of(other, f"{name} {below}")


def test_every_option_stands_somewhere() -> None:
    from hoarfrost.cli import main

    options = list(options_of(main, "hoarfrost"))
    assert len(options) > 60
    assert [option for option in options if not any(re.search(rf"{name}\b", EVERYTHING) for name in option[1])] == []


def test_every_command_and_target_stands_somewhere() -> None:
    from hoarfrost.cli import main

    commands = dict(main.commands)
    for name in dict(commands.pop("cache").commands):  # type: ignore[attr-defined]
        assert f"cache {name}" in EVERYTHING
    for name in commands:
        assert re.search(rf"hoarfrost {name}[ `]", EVERYTHING), name
    for target in ("report", "test", "extract", "train", "setup", "docs"):
        assert f"make {target}" in EVERYTHING


# -- The site ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "docs/site/mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^\"'>]+", html) == [], page.name
