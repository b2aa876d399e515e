#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# debian_faq.sh FOLDER: the Debian FAQ, the demos' English text, as FOLDER/debian-faq.txt. What is there is kept.
set -euo pipefail
folder=$1
text=$folder/debian-faq.txt
[ ! -f "$text" ] || exit 0
archive=/usr/share/doc/debian/FAQ/debian-faq.en.txt.gz
if [ ! -f "$archive" ]; then  # installed without documentation: take it out of the package
  (cd "$folder" && apt-get download -q debian-faq && dpkg-deb -x debian-faq_*.deb debian-faq)
  archive=$folder/debian-faq$archive
fi
gunzip -c "$archive" >"$text.tmp"
mv "$text.tmp" "$text"
