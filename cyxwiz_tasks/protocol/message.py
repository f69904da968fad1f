"""What every message of ours is, whichever way it goes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Message(BaseModel):
    """A message of ours. Unknown fields are ignored, so that a newer sender is understood."""

    model_config = ConfigDict(extra="ignore", frozen=True)


#: an id in its usual form
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
