"""One line a family: importing it registers its models with timm."""

from . import cloformer as cloformer
from . import mobilevit_wide as mobilevit_wide
