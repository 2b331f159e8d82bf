"""For processes that are forked from a server: what each of them would import and hash anew, done once in the server."""

from hcmae.keys import source_of

# Where training is called without a run, its key follows the whole library.
source_of(("hcmae.*", "hcmae_core.*"))
