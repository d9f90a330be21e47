"""The names of files in a BIDS folder (bids-specification 1.10), and what of them is no image.

sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz: subject, session and whatever else tells files of a
session apart are entities, a key and a label each; T1w is the suffix, anat the kind of data. Masks
lie in derivatives/, by the entities of their image.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# What stands before an entity where labels, splits and subgroups name it as a column.
COLUMN = "bids."
# The keys of entities that tell images of one session apart, and what the specification calls them.
ENTITIES = {
    "ses": "session",
    "sample": "sample",
    "task": "task",
    "trc": "tracer",
    "acq": "acquisition",
    "ce": "ceagent",
    "stain": "stain",
    "rec": "reconstruction",
    "dir": "direction",
    "run": "run",
    "echo": "echo",
    "flip": "flip",
    "inv": "inversion",
    "mt": "mtransfer",
    "part": "part",
    "chunk": "chunk",
}
# Further ones, which tell what was made of an image.
DERIVED = {
    "proc": "processing",
    "space": "space",
    "res": "resolution",
    "den": "density",
    "hemi": "hemisphere",
    "seg": "segmentation",
    "label": "label",
    "desc": "description",
    "mod": "modality",
}
# Suffixes of files whose voxels are labels.
MASKS = ("mask", "dseg", "roi", "seg")
# What lies beside images and describes them.
BESIDE = (".json", ".tsv", ".tsv.gz", ".bval", ".bvec")
# What a mask calls the space of its own image.
NATIVE = ("orig", "individual", "native", "scanner")
# Folders above subjects that hold one collection's images and what was made of them.
_HALVES = ("rawdata", "sourcedata", "derivatives")
# Folders beside the subjects that are no part of the collection.
ASIDE = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")
# Files of a collection that people read.
_TEXTS = ("README", "CHANGES", "LICENSE", "CITATION.cff")
# Words, and globs of files that are no image; an `include` that has the word means such files.
EXCLUDED = {
    **{name: f"**/{name}/**" for name in ASIDE},
    **{f"_{suffix}": f"**/sub-*_{suffix}.*" for suffix in (*MASKS, "probseg")},
    **{extension: f"**/*{extension}" for extension in BESIDE},
    **{name: f"**/{name}*" for name in _TEXTS},
}
# Globs, and the modality of their files: by kind of data, or by suffix.
# fmt: off
MODALITIES = {
    "**/sub-*/**/pet/*": "PT",
    "**/sub-*/**/*_[cC][tT].*": "CT", "**/sub-*/**/ct/*": "CT",
    "**/sub-*/**/*_cr.*": "CR", "**/sub-*/**/*_dx.*": "DX",
    **{f"**/sub-*/**/{kind}/*": "MR" for kind in ("anat", "func", "dwi", "fmap", "perf")},
}
# fmt: on
# The subject as the path has it, and as the column participant_id.
SUBJECT = r"(?:^|/)(sub-[^/]+)/"
_SUBJECT = re.compile(SUBJECT)
# A subject's session as the path has it; where there are no sessions, the subject.
SESSION = r"(?:^|/)(sub-[^/]+(?:/ses-[^/]+)?)/"
_SUBJECT_GLOB = "sub-*"
# Subjects that are looked at for names of BIDS.
_LOOKED_AT = 3


@dataclass(frozen=True)
class BidsName:
    """What the path of a file, or folder, in a BIDS folder says.

    dataset: the folder that has the subject, "" for the collection's own. subject, session: as
    their folders are called, "" for none. entities: by their keys, subject left out. suffix,
    extension: of a file that is named after its subject. words: what stands between entities in a
    name that is not quite BIDS, such as T1w in sub-01_T1w_desc-lesion_mask.
    """

    dataset: str
    subject: str
    session: str
    entities: dict[str, str]
    suffix: str = ""
    extension: str = ""
    words: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """The folder that has both the images and what was made of them."""
        parts = self.dataset.split("/")
        return "/".join(itertools.takewhile(lambda part: part not in _HALVES, parts))

    @property
    def folder(self) -> str:
        """The folder of the subject, relative as the path is."""
        return f"{self.dataset}/{self.subject}" if self.dataset else self.subject

    def value(self, name: str) -> str:
        """Return an entity by the specification's name or by its key, or the suffix; "" for none.

        The key is the name of an entity that the specification does not have.
        """
        if name == "suffix":
            return self.suffix
        for key, label in self.entities.items():
            if name in (key, name_of(key)):
                return label
        return ""

    @property
    def names(self) -> list[str]:
        """What `value` has an answer to, as the specification calls it."""
        return [*map(name_of, self.entities), *(["suffix"] if self.suffix else [])]


def name_of(key: str) -> str:
    """Return what the specification calls an entity; one that it does not have, its key."""
    return ENTITIES.get(key) or DERIVED.get(key) or key


def parse_bids(path: str) -> BidsName | None:
    """Return what a path says; None for one that is below no subject's folder."""
    match = _SUBJECT.search(f"{path}/")
    if match is None:
        return None
    subject = match[1]
    dataset = path[: match.start(1)].rstrip("/")
    below = path[match.end(1) :].strip("/")
    session = next((part for part in below.split("/") if part.startswith("ses-")), "")
    _, _, label = session.partition("-")
    entities = {"ses": label} if label and "_" not in session else {}
    name = below.rpartition("/")[2]
    if not name.startswith(f"{subject}_"):
        return BidsName(dataset, subject, session if entities else "", entities)
    stem, dot, extension = name.partition(".")
    pieces = stem.split("_")[1:]
    words = []
    for piece in pieces:
        key, dash, label = piece.partition("-")
        if dash:
            entities.setdefault(key, label)
        else:
            words.append(piece)
    suffix = words.pop() if words and words[-1] == pieces[-1] else ""
    session = f"ses-{entities['ses']}" if "ses" in entities else ""
    return BidsName(dataset, subject, session, entities, suffix, dot + extension, tuple(words))


def is_dataset(root: Path) -> bool:
    """Return whether a folder is one of BIDS: it has subjects, and says so or names files so."""
    subjects = (path for path in root.glob(_SUBJECT_GLOB) if path.is_dir())
    first = list(itertools.islice(subjects, _LOOKED_AT))
    if first and (root / "dataset_description.json").is_file():
        return True
    return any(any(subject.rglob(f"{subject.name}_*")) for subject in first)


def is_below(path: str, folder: str) -> bool:
    """Return whether a folder is another or lies in it, both relative; "" is the collection."""
    return not folder or PurePosixPath(path).is_relative_to(folder)
