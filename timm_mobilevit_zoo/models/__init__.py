"""One line a family: importing it registers its models with timm."""

from . import cloformer as cloformer
from . import deit32 as deit32
from . import efficientmod as efficientmod
from . import hybrid32 as hybrid32
from . import mobilevit_wide as mobilevit_wide
from . import swin32 as swin32
from . import vit32 as vit32
