package diskimage

import "strings"

// Declared is what a request or an object's name says that an object is. The zero
// value says nothing.
type Declared struct {
	Format Format // of the disk, or OVA
	Gzip   bool   // in a gzip file
}

// gzipSuffix is how Declared is written where it is gzip: "qcow2.gz".
const gzipSuffix = ".gz"

// ParseDeclared reads the form that String gives. A format that is not known is kept:
// no object agrees with it.
func ParseDeclared(s string) Declared {
	inner, gzip := strings.CutSuffix(s, gzipSuffix)
	return Declared{Format: Format(inner), Gzip: gzip}
}

func (d Declared) String() string {
	if d.Gzip {
		return string(d.Format) + gzipSuffix
	}
	return string(d.Format)
}

// Check compares d with what an object was found to be. What is inside of gzip is not
// known then.
func (d Declared) Check(found Format) error {
	if d.Gzip {
		return Check(Gzip, found)
	}
	return Check(d.Format, found)
}
