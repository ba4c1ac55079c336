package tmpdeps

import (
	_ "github.com/klauspost/compress/gzip"
	_ "github.com/klauspost/compress/zstd"
)
