"""The driver: splits the images into pieces, assigns them to workers, and records the outcome of each image."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache import library_versions
from hoarfrost.features.decoding.quarantine import clear_notes, suspect_keys, suspect_keys_of_worker
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.cluster import actors
from hoarfrost.features.extraction.cluster.actors import Actor, Reference, Started, WorkerLostError
from hoarfrost.features.extraction.cluster.connection import Slot
from hoarfrost.features.extraction.cluster.worker import EmbeddedPiece, Plan, Prepared
from hoarfrost.features.extraction.interrupts import StoppedError
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import LoopCounts, Progress

IN_FLIGHT = 2  # pieces that a worker has: the current one, and the next
PIECE_SECONDS = 4.0  # that a piece should take: a lost worker costs little, and the overhead is small
FIRST_BATCHES = 4  # of a worker's first piece, before its speed is known
MOST_IMAGES = 16_384  # of a piece
MOST_ATTEMPTS = 4  # at a piece: workers that die for another reason do not die at the same piece each time
MOST_STARTS = 3  # in a slot where workers die before they are ready
ANSWER_SECONDS = 0.2  # between checks for signals
LOOK_SECONDS = 5.0  # between checks for hosts that have joined or left
BUSY_SECONDS = 30.0  # without an answer of a worker, until another slot is tried
NO_WORKER_SECONDS = 60.0  # until a warning that there is no worker, or a stop because there is no host
STOP_SECONDS = 30.0  # for workers to finish a batch and commit it
BUSY = "The Ray cluster is busy, or its hosts are slow to start workers. Waiting for room."

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Piece:
    """Some of the images to embed, by their indices in the dataset, and how many workers died while they had it."""

    indices: npt.NDArray[np.int64]
    attempts: int = 0


@dataclass(eq=False)
class _Member:
    """A worker, and the calls that it has not answered: that it starts, prepares, or embeds pieces."""

    name: str
    slot: Slot
    actor: Actor
    starting: Reference | None
    started_at: float
    preparing: Reference | None = None
    prepared: Prepared | None = None
    pieces: dict[Reference, _Piece] = field(default_factory=dict)
    images_per_second: float = 0.0


@dataclass(eq=False)
class Driver:
    """Embeds images of a dataset with workers, each of which writes parts of the cache.

    No embedding comes here, only the outcome of each image (its key, size and mtime, or a reason), as the local engine
    records it. Memory grows with that table, and with nothing else. `todo` are the images to embed, ascending;
    `find_slots` returns the present room for workers; `started` are workers that exist already; `max_workers` is by default
    what there is room for.
    """

    job: Job
    todo: Sequence[int]
    device: str
    find_slots: Callable[[], list[Slot]]
    started: Sequence[Started] = ()
    max_workers: int | None = None

    def __post_init__(self) -> None:
        writer = self.job.writer
        self._known = actors.share(writer.known)
        self._compute = writer.compute  # None until the first worker has chosen it
        self._suspects = suspect_keys(writer.path)
        self._members: list[_Member] = []
        self._failed_starts: Counter[tuple[str, int]] = Counter()
        self._last_reason: HoarfrostError | None = None
        self._n_cut = 0  # of todo, that are in pieces
        self._again: deque[_Piece] = deque()
        self._n_done = 0
        self._parts: set[str] = set()
        self._counts = LoopCounts(self.device)
        self._warned: set[str] = set()
        self._looked_at = -LOOK_SECONDS
        self._ready_at: float | None = None  # when the first worker was
        self._no_worker_since = time.monotonic()
        for worker in self.started:
            self._join(worker)

    def run(self) -> LoopCounts:
        """Embed all images; if an error ends it early, what is finished is committed."""
        path = self.job.writer.path
        try:
            while self._n_done < len(self.todo):
                self._start_workers()
                self._assign_pieces()
                self._take_answers()
                if self.job.stop.received is not None:
                    self._stop_workers()
                    self.job.stop.check(len(self.todo) - self._n_done, self.job.table.readable)
        except StoppedError:
            raise
        except HoarfrostError:
            self._stop_workers()
            raise
        finally:
            for member in self._members:
                actors.end(member.actor)
            still_suspect = suspect_keys(path) | self._suspects if self._n_done < len(self.todo) else set()
            clear_notes(path, still_suspect)
        taken, views = self.job.writer.add_parts(self._parts), self.job.recipe.views
        self._counts.forward_images = sum(view.n_looks * taken.n_embeddings.get(view.name, 0) for view in views)
        self._counts.embedded = taken.n_new
        return self._counts

    # -- workers ----------------------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Start a worker in each free slot, and prepare those that have started."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            room = [slot for slot in self.find_slots() if self._failed_starts[slot.node_id, slot.number] < MOST_STARTS]
            self._start_in_free_slots(room, now)
            self._check_for_workers(bool(room), now)
        for member in self._members:
            # The first that has started chooses the compute path, as one machine would; the others compute the same bits.
            is_choosing = self._compute is None and any(other.preparing is not None for other in self._members)
            is_idle = member.starting is None and member.prepared is None and member.preparing is None
            if is_idle and not is_choosing:
                member.preparing = actors.ask(member.actor, "prepare", self._plan(), self._known)

    def _start_in_free_slots(self, room: list[Slot], now: float) -> None:
        """Start workers in free slots, up to `max_workers`, not counting those that a busy host has not started."""
        taken = {(member.slot.node_id, member.slot.number) for member in self._members}
        free = [slot for slot in room if (slot.node_id, slot.number) not in taken]
        n_awaited = sum(member.starting is None or now - member.started_at < BUSY_SECONDS for member in self._members)
        most = len(free) if self.max_workers is None else max(0, self.max_workers - n_awaited)
        for slot in free[:most]:
            self._join(actors.start(slot))

    def _join(self, started: Started) -> None:
        self._members.append(_Member(*started, actors.ask(started.actor, "is_there"), time.monotonic()))

    def _accept(self, member: _Member) -> None:
        """Keep a worker that has started, unless there are enough others by now."""
        member.starting = None
        most = self.max_workers
        if most is not None and sum(each.starting is None for each in self._members) > most:
            self._members.remove(member)
            actors.end(member.actor)

    def _check_for_workers(self, has_room: bool, now: float) -> None:
        """Warn while the cluster has no worker; raise an error if it has no slot for one."""
        if any(member.prepared for member in self._members):
            self._no_worker_since = now
            return
        if not has_room and self._last_reason is not None and not self._members:
            raise self._last_reason
        if now - self._no_worker_since < NO_WORKER_SECONDS:
            return
        if not has_room:
            raise HoarfrostError(
                f"The Ray cluster has no host left, after {self._n_done:,} of {len(self.todo):,} images. What is finished "
                "is saved. Add hosts with `ray start`, then run the same command again to continue."
            )
        self._warn_once(BUSY)

    def _plan(self) -> Plan:
        job = self.job
        return Plan(
            cache=job.writer.path,
            recipe=job.recipe.for_another_process(),
            dataset=job.dataset.name,
            location=job.dataset.images.location,
            lock_owner=job.writer.lock.owner,
            device=self.device,
            options=job.options,
            n_images=len(self.todo),  # of all workers: whether to compile must not depend on their number
            resumed=self._compute,
            versions=library_versions(),
        )

    # -- pieces -----------------------------------------------------------------------------------------------------

    def _assign_pieces(self) -> None:
        for member in self._members:
            while member.prepared is not None and (piece := self._next_piece(member)) is not None:
                indices = piece.indices.tolist()
                images = self.job.dataset.images.subset(indices)
                paths = [self.job.dataset.paths[index] for index in indices]
                asked = actors.ask(member.actor, "embed", images, paths, self._suspects, piece.attempts > 0)
                member.pieces[asked] = piece

    def _next_piece(self, member: _Member) -> _Piece | None:
        """Return a worker's next piece; None if it has enough, or no image is left."""
        if self._again and not member.pieces:
            return self._again.popleft()
        # A piece at which workers died is the only one of its next worker, so that it is known what that one dies at.
        is_alone = any(piece.attempts for piece in member.pieces.values())
        if is_alone or len(member.pieces) >= IN_FLIGHT or self._n_cut == len(self.todo):
            return None
        start, self._n_cut = self._n_cut, min(len(self.todo), self._n_cut + self._size_for(member))
        return _Piece(np.array(self.todo[start : self._n_cut], np.int64))

    def _size_for(self, member: _Member) -> int:
        """Return a piece's number of images: batches for some seconds; fewer at the end, so that all end together."""
        assert member.prepared is not None
        batch_size = member.prepared.batch_size
        wanted = int(member.images_per_second * PIECE_SECONDS) or FIRST_BATCHES * batch_size
        share = (len(self.todo) - self._n_cut) // (IN_FLIGHT * self._n_ready)
        return batch_size * max(1, min(wanted, share, MOST_IMAGES) // batch_size)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _take_answers(self) -> None:
        asked = {
            reference: member
            for member in self._members
            for reference in (member.starting, member.preparing, *member.pieces)
            if reference is not None
        }
        if not asked:
            time.sleep(ANSWER_SECONDS)
            return
        for reference in actors.answered(list(asked), ANSWER_SECONDS):
            member = asked[reference]
            if member not in self._members:  # it died, and other workers have its pieces
                continue
            try:
                answer = actors.result_of(reference)
            except WorkerLostError as error:
                self._replace_lost(member, str(error))
                continue
            except HoarfrostError as error:
                if member.prepared is not None:
                    raise
                self._exclude(member, error)
                continue
            if reference == member.starting:
                self._accept(member)
            elif isinstance(answer, Prepared):
                self._is_ready(member, answer)
            else:
                self._take(member, member.pieces.pop(reference), answer)

    def _is_ready(self, member: _Member, prepared: Prepared) -> None:
        member.preparing, member.prepared = None, prepared
        self._warn_of(member, prepared.warnings)
        if self._ready_at is None:
            self._ready_at, self._compute = time.monotonic(), prepared.compute
            self.job.writer.set_compute(prepared.compute)
        self._counts.workers = max(self._counts.workers, self._n_ready)

    @property
    def _n_ready(self) -> int:
        return sum(member.prepared is not None for member in self._members)

    def _take(self, member: _Member, piece: _Piece, embedded: EmbeddedPiece) -> None:
        """Record the result of a piece, and report progress."""
        self._account_for(piece, embedded)
        member.images_per_second = embedded.n_done / max(embedded.seconds, 1e-6)
        self._warn_of(member, embedded.warnings)
        for place, reason in sorted(embedded.table.errors.items()):
            self.job.bad.note(int(piece.indices[place]), reason)
        assert self._ready_at is not None
        rate = self._n_done / max(time.monotonic() - self._ready_at, 1e-6)
        self.job.on_progress(Progress(self._n_done, len(self.todo), rate, self._n_ready))

    def _account_for(self, piece: _Piece, embedded: EmbeddedPiece) -> None:
        self.job.table.take(piece.indices, embedded.table)
        self._counts.notes += embedded.counts.notes
        self._parts.update(embedded.parts)
        self._n_done += embedded.n_done

    def _replace_lost(self, member: _Member, reason: str) -> None:
        """Assign a dead worker's pieces to others, with the images at which it died; start another in its slot."""
        self._remove(member)
        self._suspects |= suspect_keys_of_worker(self.job.writer.path, member.name)
        if member.prepared is None:
            self._failed_starts[member.slot.node_id, member.slot.number] += 1
            self._last_reason = HoarfrostError(f"{member.slot.host}: no worker could be started there: {reason}.")
        logger.warning("A worker on %s is lost (%s). Others continue with its images.", member.slot.host, reason)
        for piece in member.pieces.values():
            piece.attempts += 1
            if piece.attempts >= MOST_ATTEMPTS:
                paths = self.job.dataset.paths
                raise HoarfrostError(
                    f"{piece.attempts} workers were lost while they embedded the images from {paths[piece.indices[0]]} to "
                    f"{paths[piece.indices[-1]]}, the last on {member.slot.host}: {reason}. What is finished is saved. "
                    "Remove these images, or fix what ends the workers (too little memory?). Then run the same command again."
                )
            self._again.append(piece)

    def _exclude(self, member: _Member, error: HoarfrostError) -> None:
        """Exclude a slot that cannot take part."""
        self._remove(member)
        self._failed_starts[member.slot.node_id, member.slot.number] = MOST_STARTS
        self._last_reason = error
        self._warn_once(f"{member.slot.host} does not take part: {error}")

    def _remove(self, member: _Member) -> None:
        """Remove a worker, and look for another slot at once."""
        self._members.remove(member)
        actors.end(member.actor)  # one that crashed may still exist
        self._looked_at = -LOOK_SECONDS

    def _warn_of(self, member: _Member, warnings: list[str]) -> None:
        for message in warnings:
            self._warn_once(f"{member.slot.host}: {message}")

    def _warn_once(self, message: str) -> None:
        """Log a warning, but each only once: there may be hundreds of workers."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _stop_workers(self) -> None:
        """Stop the workers once they have committed the current batch; record what they have done."""
        deadline = time.monotonic() + STOP_SECONDS
        for member in self._members:
            actors.request_stop(member.actor)
        while (left_s := deadline - time.monotonic()) > 0 and any(member.pieces for member in self._members):
            asked = {reference: member for member in self._members for reference in member.pieces}
            for reference in actors.answered(list(asked), left_s):
                piece = asked[reference].pieces.pop(reference)
                with suppress(WorkerLostError, HoarfrostError):  # the extraction is ending already
                    self._account_for(piece, actors.result_of(reference))
