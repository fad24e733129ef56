"""The directory of one run: its manifest, and records that are only ever appended.

A run is one method on one task. Any number of processes write to it, each to files of its own; what is done
is what all files say together. So a run can be killed at any moment and go on with another number of
processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.atomic import create_json, write_json
from vlmfix.evaluation.files.hashing import brief, canonical_json, differences, digest

MANIFEST = "manifest.json"
RECORDS = "records"
FORMAT = 2
CHECKSUM = "checksum"
_MANIFEST_TYPES = {"key": dict, "digest": str, "environments": list, "info": dict}

# What a record has beside `time_decode`, as numbers.
_COSTS = ("time_prefill", "forwards_per_token", "n_new_tokens")

Identity = tuple[str, int]
"""A sample and its sample."""


class ResumeError(ValueError):
    """A run cannot go on as it was asked to; the message says what differs and what to do."""


@dataclass(frozen=True)
class Records:
    """What the files of a run say.

    Args:
        done: the record of each sample that was answered.
        failed: that of each sample that was tried, and never answered.
        torn: names of files whose last line was cut off and is left out.
        duplicates: number of further answers to samples that had one.
    """

    done: dict[Identity, dict[str, Any]]
    failed: dict[Identity, dict[str, Any]]
    torn: list[str]
    duplicates: int

    def is_complete(self, samples: int) -> bool:
        """Whether this number of samples was tried."""
        return len(self.done) + len(self.failed) == samples


@dataclass
class RunStore:
    """A run directory.

    Args:
        path: made by `start`.
        manifest: as it stands there.
        environment: which of those in the manifest this process works in.
    """

    path: Path
    manifest: dict[str, Any]
    environment: int = 0
    _writer: Any = field(default=None, repr=False)

    @classmethod
    def start(
        cls,
        path: Path,
        key: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        info: Mapping[str, Any],
        allow_change: bool = False,
    ) -> RunStore:
        """Make a run, or go on with it.

        Args:
            path: of the run; a part of the key's digest in its name keeps other keys out.
            key: all that changes an answer, the same for all samples.
            environment: versions and devices, which should not change an answer.
            info: what a person wants to find in the manifest as well; it is not compared.
            allow_change: whether a run may go on in another environment; the manifest then lists both.

        Raises:
            ResumeError: another key or environment.
            OSError: the directory cannot be written.
        """
        (path / RECORDS).mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": FORMAT,
            "key": dict(key),
            "digest": digest(key),
            "environments": [dict(environment)],
            "info": dict(info),
        }
        create_json(path / MANIFEST, sealed(manifest))
        run = cls(path, read_manifest(path))
        if run.manifest["digest"] != manifest["digest"]:
            lines = "; ".join(differences(run.manifest["key"], key))
            raise ResumeError(f"{path} belongs to other settings ({lines}); choose another --output")
        known = run.manifest["environments"]
        if dict(environment) not in known:
            if not allow_change:
                lines = "; ".join(differences(known[-1], environment))
                raise ResumeError(
                    f"{path} was begun in another environment ({lines}); go back to it, choose another "
                    "--output, or accept the mixture with --allow-environment-change"
                )
            run.manifest["environments"] = [*known, dict(environment)]
            write_json(path / MANIFEST, sealed(run.manifest))
        run.environment = run.manifest["environments"].index(dict(environment))
        return run

    def read(self, keys: Mapping[Identity, str | None], *, trust: bool = False) -> Records:
        """All records of the given samples.

        Args:
            keys: of each sample and repeat, see `sample_key`; None: all records of the sample must agree.
            trust: whether records that somebody edited count.

        Raises:
            ValueError: a line that is not the last of its file is no record, or was edited.
            ResumeError: a record of a sample was made under another key: its image or prompt has changed.
        """
        done: dict[Identity, dict[str, Any]] = {}
        failed: dict[Identity, dict[str, Any]] = {}
        torn, duplicates = [], 0
        found = []
        seen: dict[Identity, str] = {}
        for path in sorted((self.path / RECORDS).glob("*.jsonl")):
            records, whole = _read_lines(path, trust=trust)
            found += [(record["written_at"], path.name, record) for record in records]
            if not whole:
                torn.append(path.name)
        # The first answer in this order holds, whatever the clocks of the hosts say.
        for _, name, record in sorted(found, key=lambda each: each[:2]):
            identity = (record["id"], record["repeat"])
            if identity not in keys:
                continue
            expected = keys[identity]
            if record["status"] != "ok":
                if expected in (None, record["key"]):  # else what failed was fixed since
                    failed[identity] = record
                continue
            if record["key"] != (expected or seen.setdefault(identity, record["key"])):
                raise ResumeError(
                    f"{self.path / RECORDS / name}: {record['id']} was answered with another image or prompt "
                    "than it has now; restore what changed or choose another --output"
                )
            if identity in done:
                duplicates += 1
            else:
                done[identity] = record
        failed = {identity: record for identity, record in failed.items() if identity not in done}
        return Records(done, failed, torn, duplicates)

    def append(self, records: Iterable[Mapping[str, Any]], shard: str) -> None:
        """Write records and see them to the disk; a file of this process alone is opened with the first.

        Args:
            records: to be written, one line each.
            shard: of this process, for the name of the file.

        Raises:
            OSError: the disk is full or gone; what was appended before is safe.
        """
        mark = {"environment": self.environment}
        lines = "".join(f"{canonical_json(sealed({**record, **mark}))}\n" for record in records)
        try:
            if self._writer is None:
                self._writer = _open_new(self.path / RECORDS, shard)
            elif not os.path.exists(self._writer.name):  # what is written to a removed file is lost
                raise FileNotFoundError
            left = memoryview(lines.encode())
            while left:
                left = left[self._writer.write(left) :]
            os.fsync(self._writer.fileno())
        except FileNotFoundError:
            self.close()
            raise gone(self.path / RECORDS) from None
        except OSError as error:
            self.close()  # a line may be cut off, and nothing may follow it
            raise OSError(
                f"cannot write to {self.path / RECORDS} ({error.strerror}); what was answered before is "
                "safe: make room and start the same command again"
            ) from error

    def close(self) -> None:
        """Close the file of this process."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record or manifest with a checksum over all the rest."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**rest, CHECKSUM: digest(rest)[:16]}


def sample_key(run_key: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """SHA-256 over the settings of the run and what belongs to one sample: content, image, prompt, seed.

    Raises:
        ValueError: a value is no finite number.
    """
    return digest({**run_key, "sample": dict(sample)})


def read_manifest(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """The manifest of a run directory.

    Args:
        path: of the run.
        trust: whether one that somebody edited counts.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, edited, or of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no run directory: it has no {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no object")
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"its format is {brief(manifest.get('format'))}, and this version reads {FORMAT}"
            )
        for name, kind in _MANIFEST_TYPES.items():
            if not isinstance(manifest.get(name), kind):
                raise ValueError(f"{name} is {brief(manifest.get(name))}")
        if not trust and manifest != sealed(manifest):
            raise ValueError("it was edited after it was written; vlmfix report --trust takes it as it is")
        return manifest
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be used ({error}); move the directory away and start again"
        ) from error


def gone(path: Path) -> OSError:
    """What to raise where a folder of a job is not there any more; it names the highest that is missing."""
    missing = next((each for each in (*reversed(path.parents), path) if not each.exists()), path)
    return OSError(
        f"the output folder {missing} is gone: it was removed or moved while the job ran; move it back, or "
        "start the same command again, which begins anew what was in it"
    )


def _open_new(directory: Path, shard: str) -> Any:
    """A file that no process has used yet."""
    attempt = 0
    while True:
        try:
            return open(directory / f"{shard}-{attempt:03}.jsonl", "xb", buffering=0)
        except FileExistsError:
            attempt += 1


def _read_lines(path: Path, *, trust: bool) -> tuple[list[dict[str, Any]], bool]:
    """The records of a file, and whether its last line is whole."""
    lines = path.read_bytes().split(b"\n")
    last = lines.pop()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not _is_record(record):
                raise ValueError("no record of a run")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not last:
                return records, False
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); remove this line to answer its sample again"
            ) from error
        if not trust and record != sealed(record):
            raise ValueError(
                f"{path}, line {number} was edited after it was written; remove this line to answer its "
                "sample again, or take it as it is with vlmfix report --trust"
            )
        record.pop(CHECKSUM, None)
        records.append(record)
    return records, not last


def _is_record(record: Any) -> bool:
    """Whether it has what reading and scoring need, in their types."""
    if not isinstance(record, dict):
        return False
    if "time_decode" in record and not all(
        isinstance(record.get(name), int | float) for name in ("time_decode", *_COSTS)
    ):
        return False
    if "time_decode" in record and not isinstance(record.get("method_info"), dict):
        return False
    texts = ["id", "key", *(["text", "finish"] if record.get("status") == "ok" else ["error", "error_type"])]
    return (
        all(isinstance(record.get(name), str) for name in texts)
        and isinstance(record.get("repeat"), int)
        and isinstance(record.get("written_at"), int | float)
    )
