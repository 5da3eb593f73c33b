"""The checks of adaptive_fusion's arguments."""

from torch import Tensor

from amuse_kernels.checks import FLOATING, check_like, check_mask, check_shape, check_tensor, shape_of

MAX_MODALITIES = 8


def check_fusion(
    descriptors: Tensor,
    alpha: Tensor | None,
    pair_weight: Tensor | None,
    pair_bias: Tensor | None,
    present: Tensor | None,
) -> None:
    """Validate the arguments of `adaptive_fusion`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or device, or neither or both of alpha and the gate.
    """
    check_tensor("descriptors", descriptors, FLOATING)
    if descriptors.dim() < 2:
        raise ValueError(f"descriptors: expected (..., M, d), got {shape_of(descriptors)}")
    *batch, modalities, width = descriptors.shape
    if not 1 <= modalities <= MAX_MODALITIES:
        raise ValueError(f"descriptors: expected 1 to {MAX_MODALITIES} modalities in (..., M, d), got {modalities}")
    if width == 0:
        raise ValueError(f"descriptors: expected a width d of at least 1, got {shape_of(descriptors)}")
    if (alpha is None) == (pair_weight is None) or (pair_weight is None) != (pair_bias is None):
        given = [
            name
            for name, value in (("alpha", alpha), ("pair_weight", pair_weight), ("pair_bias", pair_bias))
            if value is not None
        ]
        raise ValueError(
            "alpha: expected either alpha, or both pair_weight and pair_bias; "
            f"got {' and '.join(given) or 'none of them'}"
        )
    if alpha is not None:
        check_like("alpha", alpha, descriptors.dtype, descriptors.device)
        scalar, elementwise = (*batch, modalities, modalities), (*batch, modalities, modalities, width)
        if alpha.shape not in (scalar, elementwise):
            raise ValueError(f"alpha: expected {scalar} or {elementwise}, got {shape_of(alpha)}")
    if pair_weight is not None and pair_bias is not None:
        pairs = modalities * (modalities - 1)
        check_tensor("pair_weight", pair_weight, FLOATING, descriptors.device)
        check_shape("pair_weight", pair_weight, (pairs, 2, width))
        check_tensor("pair_bias", pair_bias, FLOATING, descriptors.device)
        check_shape("pair_bias", pair_bias, (pairs,))
    if present is not None:
        check_mask("present", present, (*batch, modalities), descriptors.device, "has this modality")
