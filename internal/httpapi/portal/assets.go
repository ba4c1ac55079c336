package portal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/labstack/echo/v4"
)

// file is one that pages refer to.
type file struct {
	content []byte
	media   string
	etag    string
}

// The files by the name under which they are asked for, which has a hash of the content
// in it, so that browsers may keep them for good; and these names by their own.
var assets, assetNames = mustAssets(map[string]string{
	"portal.css": "text/css; charset=utf-8",
	"portal.js":  "text/javascript; charset=utf-8",
	"icon.svg":   "image/svg+xml",
})

func mustAssets(media map[string]string) (map[string]file, map[string]string) {
	files, names := map[string]file{}, map[string]string{}
	for name, m := range media {
		b, err := web.ReadFile("web/" + name)
		if err != nil {
			panic(fmt.Sprintf("portal: %v", err))
		}
		sum := sha256.Sum256(b)
		hash, ext := hex.EncodeToString(sum[:8]), path.Ext(name)
		names[name] = strings.TrimSuffix(name, ext) + "-" + hash + ext
		files[names[name]] = file{b, m, `"` + hash + `"`}
	}
	return files, names
}

// asset serves a file.
func (p *Portal) asset(c echo.Context) error {
	f, ok := assets[c.Param("file")]
	if !ok {
		return errNoPage
	}
	h := c.Response().Header()
	h.Set(echo.HeaderCacheControl, "public, max-age=31536000, immutable")
	h.Set("ETag", f.etag)
	h.Del(echo.HeaderVary)
	if c.Request().Header.Get("If-None-Match") == f.etag {
		return c.NoContent(http.StatusNotModified)
	}
	return c.Blob(http.StatusOK, f.media, f.content)
}
