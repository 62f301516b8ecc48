"""Uploading a folder to the Hugging Face hub."""

from importlib.util import find_spec
from pathlib import Path

from speechssl import __version__
from speechssl.errors import CheckpointError


def require_hub() -> None:
    """Check that the client is there before anything is made for it.

    Raises:
        CheckpointError: the package is missing.
    """
    if find_spec("huggingface_hub") is None:
        raise CheckpointError("--push needs the package huggingface_hub: pip install 'speechssl[hub]'")


def upload(folder: Path, name: str) -> str:
    """Upload the files of a folder into a model repository, which is made if need be; return its address.

    The token is that of ``hf auth login`` or of ``HF_TOKEN``; ``HF_ENDPOINT`` names another server.

    Raises:
        CheckpointError: the server, or the way to it, refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="speechssl", library_version=__version__)
    try:
        repository = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Upload by speechssl export")
    except Exception as error:  # of the client, of HTTP or of the network: they have no class in common
        lines = [line for line in str(error).splitlines() if not line.startswith("For more information")]
        advice = f"{folder} is complete, `hf upload {name} {folder}` tries again"
        raise CheckpointError(f"{name}: cannot be uploaded: {' '.join(lines)}; {advice}") from None
    return f"{api.endpoint}/{repository.repo_id}"
