"""Plain functions that write real DICOM, NIfTI and raster files for the reader's tests."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RTStructureSetStorage,
    generate_uid,
)

# What no store, log or report may ever show.
IDENTITY = {
    "PatientName": "SECRETNAME^ANNA",
    "PatientID": "SECRETID-4711",
    "PatientBirthDate": "19331122",
    "AccessionNumber": "SECRETACC99",
    "ReferringPhysicianName": "SECRETDOC^BERT",
    "InstitutionName": "SECRETHOSPITAL",
}
AXIAL = (1, 0, 0, 0, 1, 0)


def volume(depth: int = 6, height: int = 20, width: int = 24) -> np.ndarray:
    """Return (depth, height, width) int16 without any symmetry, in the range of HU."""
    z, y, x = np.mgrid[:depth, :height, :width]
    return (100 * z + 7 * y + 3 * x + 11 * (y > 4) * (x > 9) - 500).astype(np.int16)


def dicom(pixels: np.ndarray, **tags: Any) -> Dataset:
    """Return a CT dataset of stored values (H, W), (n, H, W) or (H, W, 3), with tags over it."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1111"
    ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2222"
    ds.Modality = "CT"
    ds.RescaleSlope = 1
    ds.RescaleIntercept = 0
    for name, value in IDENTITY.items():
        setattr(ds, name, value)
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def save(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset as a DICOM file, compressed where the syntax asks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = (
            np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}").byteswap().tobytes()
        )
    if getattr(syntax, "is_compressed", False) and getattr(syntax, "is_encapsulated", True):
        ds.compress(syntax, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    positions: list[tuple[float, float, float]] | None = None,
    spacing: tuple[float, float] = (0.8, 0.7),
    step: float = 2.5,
    orientation: tuple[float, ...] = AXIAL,
    **tags: Any,
) -> list[Path]:
    """Write (n, H, W) as one file a slice, names in an order that is not that of the positions."""
    along, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along, down)
    if positions is None:
        start = np.array([-30.0, -40.0, 100.0])
        positions = [tuple(start + k * step * normal) for k in range(len(voxels))]
    paths = []
    for k, (pixels, position) in enumerate(zip(voxels, positions, strict=True)):
        ds = dicom(
            pixels,
            ImagePositionPatient=[float(v) for v in position],
            ImageOrientationPatient=[float(v) for v in orientation],
            PixelSpacing=list(spacing),
            InstanceNumber=k + 1,
            **tags,
        )
        paths.append(save(ds, folder / f"IM{(k * 37) % 101:03d}"))
    return paths


def write_nifti_of_series(
    path: Path,
    voxels: np.ndarray,
    *,
    spacing: tuple[float, float] = (0.8, 0.7),
    step: float = 2.5,
    start: tuple[float, float, float] = (-30.0, -40.0, 100.0),
) -> Path:
    """Write the volume of an axial `write_series` as NIfTI, as a converter would (LPS -> RAS)."""
    affine = np.diag([-spacing[1], -spacing[0], step, 1.0])
    affine[:3, 3] = -start[0], -start[1], start[2]
    image = nib.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def transcode(source: Path, path: Path, syntax: str) -> Path:
    """Write a DICOM file anew under another transfer syntax, with GDCM."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
    return path


def nifti_header(shape: tuple[int, ...]) -> bytes:
    """Return the 352 bytes in front of a NIfTI volume of bytes."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + b"\0" * 4


def _item(**tags: Any) -> Dataset:
    ds = Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def write_enhanced(path: Path, voxels: np.ndarray, slopes: list[float], times: int = 1) -> Path:
    """Write an enhanced MR of (times * n, H, W), each frame with its own position and rescale."""
    ds = dicom(voxels, SOPClassUID=EnhancedMRImageStorage, Modality="MR")
    per_time = len(voxels) // times
    ds.SharedFunctionalGroupsSequence = Sequence(
        [
            _item(
                PixelMeasuresSequence=Sequence([_item(PixelSpacing=[1.5, 1.25])]),
                PlaneOrientationSequence=Sequence([_item(ImageOrientationPatient=list(AXIAL))]),
            )
        ]
    )
    groups = []
    for frame, slope in enumerate(slopes):
        t, k = divmod(frame, per_time)
        groups.append(
            _item(
                FrameContentSequence=Sequence([_item(StackID="1", TemporalPositionIndex=t + 1)]),
                # Stored from the top down: the reader must order by position.
                PlanePositionSequence=Sequence(
                    [_item(ImagePositionPatient=[0.0, 0.0, 50.0 - 3.0 * k])]
                ),
                PixelValueTransformationSequence=Sequence(
                    [_item(RescaleIntercept=float(frame), RescaleSlope=slope, RescaleType="US")]
                ),
                FrameVOILUTSequence=Sequence(
                    [_item(WindowCenter=10.0 * frame, WindowWidth=100.0, VOILUTFunction="SIGMOID")]
                ),
            )
        )
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return save(ds, path)


def write_mosaic(path: Path, tiles: np.ndarray, *, counted: bool = True) -> Path:
    """Write (n, H, W) as a Siemens mosaic, its private header with the number of tiles or not."""
    count, height, width = tiles.shape
    side = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((side * height, side * width), tiles.dtype)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, side)
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    ds = dicom(
        picture,
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        ImagePositionPatient=[-100.0, -100.0, 5.0],
        ImageOrientationPatient=list(AXIAL),
        PixelSpacing=[2.0, 2.0],
        SpacingBetweenSlices=4.0,
    )
    if counted:
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", count)
    return save(ds, path)


def write_png(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    """Write grey, colour or palette pixels as PNG (or as the suffix says)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def write_bigtiff(path: Path, pixels: np.ndarray, order: str = "<") -> Path:
    """Write grey pixels of 16 bits as BigTIFF, of a byte order."""
    data = pixels.astype(f"{order}u2").tobytes()
    height, width = pixels.shape
    # Tag, type (3: short, 4: long, 16: of eight bytes), value; 273 is where the pixels begin.
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 16, None), (277, 3, 1), (278, 4, height), (279, 16, len(data))]
    place = 16 + 8 + 20 * len(tags) + 8
    magic = b"II+\0" if order == "<" else b"MM\0+"
    out = magic + struct.pack(f"{order}HHQQ", 8, 0, 16, len(tags))
    codes = {3: "H6x", 4: "I4x", 16: "Q"}
    for tag, kind, value in tags:
        out += struct.pack(f"{order}HHQ", tag, kind, 1)
        out += struct.pack(f"{order}{codes[kind]}", place if value is None else value)
    path.write_bytes(out + bytes(8) + data)
    return path


def png_bomb(path: Path, side: int = 60_000) -> Path:
    """Write a PNG of a few bytes whose header declares side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


# `htj2k_pixels`, coded losslessly as HTJ2K with OpenJPH: no encoder of it is installed here.
_HTJ2K = (
    "|4;u>04YEK0000m0000e00000000000000m0000e0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0sm"
    "Y86Cj9?kdTm&kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001H2?wslfVEg0096q{wM!O`"
    "U1l=0KfnezyK0J01^P8084ZL^9nNn{wH$)zyKAH00htg1Yl)t3HCq$Ex;B2cmTQ22ELR4M{@wc02R;x1$+PjAXb%"
    "Br3OZXbn!kHL)rlUKHv9!fClgY4fTVlx&V9;GyuQ=7SsR%Z$JPO07wK907w8J0f79s^ndcxf6Gt)T6F$YE&u@thh"
    "Z3oVHkRMcXxMpkK2>qzE6JnJ(d753lNY|0sO!4FLeOG04|yU0d~*;34jm_Nk~Exl8}TXBq0g?NBpP1Q{SoY)c5Lp"
    "^*#EY{ZD?UPU3k1fvT#is;a80s;W$qBuSDaNs=V~e~<!Ce#t%iB=_u--?C4B$vu`yzj-G8<eT@BZ{A71vjYA8f7E"
    "pV|Je"
)


def htj2k_pixels() -> np.ndarray:
    """Return the pixels that `write_htj2k` holds: (40, 48) uint16."""
    y, x = np.mgrid[:40, :48]
    return (7 * y + 3 * x + 11 * (y > 4) * (x > 9)).astype(np.uint16)


def write_htj2k(path: Path) -> Path:
    """Write a CT slice as HTJ2K."""
    ds = dicom(htj2k_pixels())
    ds.PixelData = encapsulate([base64.b85decode(_HTJ2K)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = HTJ2KLossless
    ds.save_as(path, enforce_file_format=True)
    return path


def write_jpeg_12(path: Path, pixels: np.ndarray, cut: int = 0, **tags: Any) -> Path:
    """Write (n, H, W) below 4096 as lossy JPEG of 12 bits; cut: bytes lost of each stream."""
    from imagecodecs import jpeg8_encode

    ds = dicom(pixels, BitsStored=12, HighBit=11, **tags)
    streams = [jpeg8_encode(frame, level=98, bitspersample=12) for frame in pixels]
    ds.PixelData = encapsulate([stream[: len(stream) - cut] for stream in streams])
    ds["PixelData"].VR = "OB"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    ds.save_as(path, enforce_file_format=True)
    return path


def write_structures(
    path: Path,
    files: list[Path],
    structures: dict[str, dict[int, list[np.ndarray]]],
    syntax: str = ImplicitVRLittleEndian,
) -> Path:
    """Write an RT structure set over axial slices.

    structures: by name, by the number of the file, polygons (p, 2) of x and y in its pixels.
    """
    images = [dcmread(file, stop_before_pixels=True) for file in files]
    uids = [_item(ReferencedSOPInstanceUID=ds.SOPInstanceUID) for ds in images]
    series = _item(SeriesInstanceUID=images[0].SeriesInstanceUID, ContourImageSequence=uids)
    study = _item(RTReferencedSeriesSequence=[series])
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID = RTStructureSetStorage
    ds.SOPInstanceUID = generate_uid()
    ds.Modality = "RTSTRUCT"
    ds.ReferencedFrameOfReferenceSequence = [_item(RTReferencedStudySequence=[study])]
    ds.StructureSetROISequence = []
    ds.ROIContourSequence = []
    for number, (name, polygons) in enumerate(structures.items(), start=1):
        ds.StructureSetROISequence.append(_item(ROINumber=number, ROIName=name))
        contours = []
        for place, some in polygons.items():
            corner = np.array(images[place].ImagePositionPatient, float)
            down, along = map(float, images[place].PixelSpacing)
            for polygon in some:
                points = corner + polygon @ [[along, 0, 0], [0, down, 0]]
                numbers = [f"{value:.8g}" for value in np.ravel(points)]
                contours.append(_item(ContourGeometricType="CLOSED_PLANAR", ContourData=numbers))
        ds.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=contours))
    return save(ds, path, syntax)
