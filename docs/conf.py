# SPDX-License-Identifier: Apache-2.0
import os
import re
from pathlib import Path

root = Path(__file__).resolve().parent.parent
project = "int8q"
author = "the int8q authors"
release = re.search(r"project\(int8q VERSION ([\d.]+)", (root / "CMakeLists.txt").read_text())[1]

extensions = ["breathe", "myst_parser"]
breathe_projects = {"int8q": os.environ["INT8Q_DOXYGEN_XML"]}
breathe_default_project = "int8q"
breathe_default_members = ("members",)
breathe_domain_by_extension = {"h": "c", "hpp": "cpp"}
c_id_attributes = ["INT8Q_API"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2  # page.md#heading, as GitHub has it
exclude_patterns = ["abi/functions.md"]
html_theme = "furo"
html_title = f"int8q {release}"
