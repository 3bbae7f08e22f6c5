"""One line a family: importing it registers its models with timm."""

from . import casvit as casvit
from . import cloformer as cloformer
from . import deit32 as deit32
from . import edgevit as edgevit
from . import efficientmod as efficientmod
from . import hybrid32 as hybrid32
from . import mobilevit_wide as mobilevit_wide
from . import mobilevitv3 as mobilevitv3
from . import moganet as moganet
from . import recnext as recnext
from . import repnext as repnext
from . import swin32 as swin32
from . import timm_layers as timm_layers
from . import unireplknet as unireplknet
from . import van as van
from . import vit32 as vit32
from .names import warn_of_taken

warn_of_taken()
