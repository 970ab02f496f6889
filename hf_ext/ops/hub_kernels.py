"""Kernels on the Hub that our layers may take, each pinned: nothing is fetched before a model asks for them.

`version` is the branch of a kernel repository that only grows compatibly, as the library `kernels` defines it; `revision`
is a commit. Attention kernels are named in `attn_implementation`, and transformers pins their versions; a name with
`@revision` pins another.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubKernel:
    """repo_id: on the Hub. Either version or revision, as of `kernels.get_kernel`."""

    repo_id: str
    version: int | None = None
    revision: str | None = None

    def load(self):
        """The kernel's module, from the cache or the Hub.

        Raises:
            OSError: neither has it. ImportError: `kernels` is not installed.
        """
        from kernels import get_kernel

        return get_kernel(self.repo_id, version=self.version, revision=self.revision)


PINNED: dict[str, HubKernel] = {
    "liger": HubKernel("kernels-community/liger-kernels", version=3),
}
