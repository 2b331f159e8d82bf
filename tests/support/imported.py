"""For processes that are forked from a server: what each would import and hash anew is done once, in the server."""

from hcmae.keys import source_of

# Where training is called without a run, its key follows the whole library.
source_of(("hcmae.*", "hcmae_core.*"))
