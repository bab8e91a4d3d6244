"""The service: a page, and `POST /predict`. The sole user of FastAPI."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import UploadFile as StarletteFile
from starlette.formparsers import MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hoarfrost import __version__
from hoarfrost.features.decoding.isolated import Cancellation, DecoderStartError
from hoarfrost.features.errors import ImageDecodeError
from hoarfrost.inference.serve.answers import RESEARCH_USE, About, Answer, Problem
from hoarfrost.inference.serve.batcher import LARGEST_BATCH, Batcher
from hoarfrost.inference.serve.limits import LimitRequests, Limits

if TYPE_CHECKING:
    from hoarfrost.features.decoding.looks import Seen

DESCRIPTION = (
    f"**{RESEARCH_USE}**\n\nA head on a frozen encoder answers for one image at a time. No file is kept. Calibration, "
    "thresholds, conformal sets and the limit of the distance come from the run's validation images. They hold for similar "
    "images only."
)
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not a form with one file, or a field that is not what it should be"},
    403: {"model": Problem, "description": "From a page of another origin"},
    408: {"model": Problem, "description": "Not sent or not answered in time"},
    413: {"model": Problem, "description": "Too many bytes"},
    415: {"model": Problem, "description": "Not an image, a damaged one, or one with too many pixels"},
    429: {"model": Problem, "description": "Too many requests at a time"},
    503: {"model": Problem, "description": "No process could be started to decode the image in"},
}


class Reader(Protocol):
    """The interface of a reader, which decodes an image and answers for it."""

    about: About

    def decode(self, content: bytes, cancellation: Cancellation) -> "Seen":
        """Decode to what the encoder sees, unless cancelled; called in several threads. Raises ImageDecodeError."""

    def answer(self, images: "Sequence[Seen]") -> Sequence[Answer]:
        """Answer for a batch; called in one thread."""

    def trained_on(self, content: bytes) -> bool | None:
        """Return whether a file of these bytes was in the training split; None if that is not known."""

    def explain(self, image: "Seen", answer: Answer) -> Answer:
        """Add the explanation; called in one thread."""


def create_app(reader: Reader, limits: Limits, *, hosts: Sequence[str], workers: int) -> FastAPI:
    """Return the application, which decodes in `workers` threads.

    `hosts` are the host names that requests may use ("*": any): a page elsewhere whose name points here is refused.
    """
    MultiPartParser.spool_max_size = limits.max_bytes + 1  # files stay in memory: nothing is written to disk

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Batcher(reader.answer, LARGEST_BATCH) as batcher, ThreadPoolExecutor(workers, "decode") as decoders:
            app.state.batcher, app.state.decoders = batcher, decoders
            yield

    app: FastAPI = FastAPIOffline(
        title="hoarfrost", version=__version__, description=DESCRIPTION, redoc_url=None, lifespan=lifespan
    )
    page = _page(reader.about)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return _with_nonce(page)

    @app.get("/about", summary="The head that answers")
    async def about() -> About:
        return reader.about

    @app.post("/predict", summary="Predict one image", responses=REFUSALS)
    async def predict(
        request: Request,
        file: Annotated[UploadFile, File(description="PNG, JPEG, TIFF, WebP, BMP, DICOM and others.")],
        explain: Annotated[bool, Query(description="With activation map and nearest training images.")] = False,
    ) -> Answer:
        uploads = (await request.form()).multi_items()
        if sum(isinstance(value, StarletteFile) for _, value in uploads) > 1:
            raise HTTPException(400, "more than one file in the form: send one image in each request")
        return await _unless_gone(request, _predict(app, reader, limits, await file.read(), explain))

    app.add_exception_handler(RequestValidationError, _bad_field)
    app.openapi = partial(_without_422, app.openapi)  # type: ignore[method-assign]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(LimitRequests, limits=limits)  # added last, it is outermost
    return app


async def _predict(app: FastAPI, reader: Reader, limits: Limits, content: bytes, explain: bool) -> Answer:
    if len(content) > limits.max_bytes:
        raise HTTPException(413, limits.too_large)
    loop, threads, cancellation = asyncio.get_running_loop(), app.state.decoders, Cancellation()
    try:
        async with asyncio.timeout(limits.seconds):
            pixels = await loop.run_in_executor(threads, reader.decode, content, cancellation)
            answer: Answer = await asyncio.wrap_future(app.state.batcher.submit(pixels))
            answer = answer.model_copy(update={"in_training_split": reader.trained_on(content)})
            if explain:
                answer = await loop.run_in_executor(threads, reader.explain, pixels, answer)
    except ImageDecodeError as error:
        raise HTTPException(415, str(error)) from error
    except DecoderStartError as error:
        raise HTTPException(503, f"no process to decode images in could be started ({error.reason})") from error
    except TimeoutError:
        raise HTTPException(408, f"not answered within {limits.seconds:g} s") from None
    finally:
        cancellation.cancel()  # nobody waits for it any more
    return answer


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Wait for an answer, but no longer than its client does."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(408, "the client has left")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bad_field(_: Request, error: Exception) -> JSONResponse:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    texts = [f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in problems]
    return JSONResponse({"detail": "; ".join(texts)}, 400)


def _without_422(document: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the interface's description, where FastAPI promises its own answer to a bad field."""
    found = document()
    for operation in (operation for path in found["paths"].values() for operation in path.values()):
        operation["responses"].pop("422", None)
    return found


def _page(about: About) -> str:
    environment = Environment(
        loader=PackageLoader("hoarfrost.inference.serve", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(about=about, nonce="NONCE")


def _with_nonce(page: str) -> HTMLResponse:
    """Return the page, which may run its own script and ask this host, and nothing else."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    headers |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    return HTMLResponse(page.replace('nonce="NONCE"', f'nonce="{nonce}"'), headers=headers)
