"""Every attack by its name."""

from .bodies import BODIES
from .connections import CONNECTIONS
from .formats import FORMATS
from .media import MEDIA

ATTACKS = {attack.name: attack for attack in (*FORMATS, *BODIES, *MEDIA, *CONNECTIONS)}
