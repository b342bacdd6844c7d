"""Settings of every test process: made before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; tiny models gain nothing from threads
os.environ["HF_HUB_OFFLINE"] = "1"

from compressor.log import quiet_libraries

quiet_libraries()
