package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"vmimport/internal/secret"
)

// ByteSize is a number of bytes, written as a number with a unit: 512MiB, 4GiB,
// 100MB, 4096.
type ByteSize int64

var byteUnits = []struct {
	suffix string
	bytes  float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}, {"", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || math.IsNaN(f) || f < 0 || f*u.bytes >= math.MaxInt64 {
			break
		}
		*b = ByteSize(f * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is no size, such as 512MiB", s)
}

// MarshalText implements encoding.TextMarshaler.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String gives the largest binary unit that divides b.
func (b ByteSize) String() string {
	for _, u := range byteUnits[:4] {
		if n := int64(u.bytes); int64(b) >= n && int64(b)%n == 0 {
			return fmt.Sprintf("%d%s", int64(b)/n, u.suffix)
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Variable is an environment variable that overrides a key of the file.
type Variable struct {
	Name string
	Key  string
	set  func(*Config, string) error
}

// Variables lists them all.
var Variables = []Variable{
	{"VMIMPORT_REDIS_URL", "redis.url", func(c *Config, s string) error { c.Redis.URL = secret.New(s); return nil }},
	{"VMIMPORT_LISTEN", "listen", func(c *Config, s string) error { c.Listen = s; return nil }},
	{"VMIMPORT_OPERATOR_TOKEN", "operator token", func(c *Config, s string) error { c.Operator.Token = secret.New(s); return nil }},
	{"VMIMPORT_LOG_LEVEL", "log.level", func(c *Config, s string) error { c.Log.Level = s; return nil }},
	{"VMIMPORT_WORKER_LISTEN", "worker.listen", func(c *Config, s string) error { c.Worker.Listen = s; return nil }},
	{"VMIMPORT_WORKER_CONCURRENCY", "worker.concurrency", func(c *Config, s string) (err error) { c.Worker.Concurrency, err = strconv.Atoi(s); return err }},
	{"VMIMPORT_WORKER_SCRATCH", "worker.scratch", func(c *Config, s string) error { c.Worker.Scratch = s; return nil }},
	{"VMIMPORT_WORKER_MEMORY", "worker.memory", func(c *Config, s string) error { return c.Worker.Memory.UnmarshalText([]byte(s)) }},
}
