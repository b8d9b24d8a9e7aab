"""Methods that weight activations A by gradients g = dS/dA; sum_ij and mean_ij run over cells, sum_k over channels."""

from torch import Tensor

from detcam.errors import LayerError
from detcam.methods.activation import vectors_of
from detcam.methods.base import Method, PooledMethod
from detcam.methods.components import first_component

UNEVEN = 1e-4  # how much a gradient that is the same in all cells may differ by rounding
EPSILON = 1e-6  # keeps quotients finite where a channel is silent; pytorch-grad-cam uses 1e-6 and 1e-7


class GradCAM(PooledMethod):
    """Grad-CAM: each channel is weighted by its mean gradient.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    equations 1 and 2. The mean runs over the whole map, so at a detector's head the weights of an object
    highlight every object of its class.

    Applied to a contrast between classes it is Finer-CAM; target "margin" is such a contrast for any method.
    """

    name = "gradcam"
    formula = "ReLU(sum_k mean_ij(g_k) A_k)"
    source = "Selvaraju et al. 2017, arXiv:1610.02391, eq. 1-2"

    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        return grads.mean(dim=(2, 3))


class CAM(PooledMethod):
    """CAM: the weights of the linear layer that follows a global average pooling of the layer.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", equation 2. There, and only there, the
    gradient of a logit is the same in all h * w cells, w_k / (h * w), so the weights are read off it.

    Raises:
        LayerError: if the gradient is not the same in all cells.
    """

    name = "cam"
    formula = "ReLU(sum_k w_k A_k), w of the linear layer behind global average pooling"
    source = "Zhou et al. 2016, CVPR, eq. 2"

    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        low, high = grads.amin(dim=(2, 3)), grads.amax(dim=(2, 3))
        if grads.numel() and float((high - low).amax()) > UNEVEN * float(grads.abs().amax()):
            raise LayerError(
                "method cam: no global average pooling and linear layer follow this layer, for the gradient differs "
                "from cell to cell: use 'gradcam', or 'hirescam' for one map per object"
            )
        return grads.sum(dim=(2, 3))


class GradCAMPlusPlus(PooledMethod):
    """Grad-CAM++: positive gradients, weighted to count several instances of a class alike.

    Chattopadhay et al. 2018, "Grad-CAM++: Generalized Gradient-based Visual Explanations", equations 11 and 19; with
    S = exp(logit) the higher derivatives become powers of g. The formula was made for non-negative activations: behind
    SiLU, as in YOLO, sum_ij A is often negative, the quotient has poles, and maps can come out blank.
    """

    name = "gradcam++"
    formula = "ReLU(sum_k w_k A_k), w = sum_ij a ReLU(g), a = g^2 / (2 g^2 + (sum_ij A) g^3)"
    source = "Chattopadhay et al. 2018, arXiv:1710.11063, eq. 11, 19"

    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        squared = grads**2
        total = acts.sum(dim=(2, 3), keepdim=True)
        alpha = squared / (2 * squared + total * squared * grads + EPSILON)
        return (alpha * grads.clamp(min=0)).sum(dim=(2, 3))


class XGradCAM(PooledMethod):
    """XGrad-CAM: gradients weighted by each cell's share of its channel's activation.

    Fu et al. 2020, "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", equation 8.
    """

    name = "xgradcam"
    formula = "ReLU(sum_k w_k A_k), w = sum_ij A g / sum_ij A"
    source = "Fu et al. 2020, arXiv:2008.02312, eq. 8"

    def weights(self, acts: Tensor, grads: Tensor) -> Tensor:
        return (acts * grads).sum(dim=(2, 3)) / (acts.sum(dim=(2, 3)) + 1e-7)


class HiResCAM(Method):
    """HiResCAM: gradient times activation, cell by cell, no pooling.

    Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", equation 3. Unlike a pooled weight it keeps the place of the gradient, which differs between objects.
    """

    name = "hirescam"
    formula = "ReLU(sum_k g_k * A_k)"
    source = "Draelos & Carin 2020, arXiv:2011.08891, eq. 3"
    gradient_times_activation = True
    elementwise = True

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        return self.terms(acts, grads).sum(dim=1)

    def terms(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        return acts * grads


class ODAM(HiResCAM):
    """ODAM: the element-wise map of an object's scalar, at the feature level that the object was read from.

    Zhao & Chan 2023, "ODAM: Gradient-based Instance-Specific Visual Explanations for Object Detection", equation 4.
    The formula is HiResCAM's; what ODAM adds is the scalar of one instance (class score or a side of its box).
    """

    name = "odam"
    source = "Zhao & Chan, ICLR 2023, arXiv:2304.06354, eq. 4"


class LayerCAM(HiResCAM):
    """LayerCAM: positive gradients times activations, cell by cell.

    Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", equations 4 to 6.
    """

    name = "layercam"
    formula = "ReLU(sum_k ReLU(g_k) * A_k)"
    source = "Jiang et al. 2021, IEEE TIP 30, eq. 4-6"
    gradient_times_activation = False

    def terms(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        return acts * grads.clamp(min=0)


class EigenGradCAM(Method):
    """Eigen-Grad-CAM: gradient times activation, projected on its first principal component.

    As in pytorch-grad-cam: Eigen-CAM (Muhammad & Yeasin 2020, equation 4) of g * A in place of A, which differs
    between objects. The sign is chosen to make the projection grow with sum_k g_k * A_k.
    """

    name = "eigengradcam"
    formula = "ReLU(+-(g * A - mean_ij(g * A)) v), v = first principal component of g * A"
    source = "Muhammad & Yeasin 2020, arXiv:2008.00299, eq. 4, on g * A as in pytorch-grad-cam"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        cells = vectors_of(acts) * vectors_of(grads)  # in double precision products of small numbers do not underflow
        return first_component(cells, cells.sum(dim=2)).to(acts.dtype).view(len(acts), *acts.shape[2:])
