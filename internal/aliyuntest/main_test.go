package aliyuntest

import (
	"fmt"
	"os"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
	"go.uber.org/goleak"
)

// TestMain also sees to it that neither a goroutine nor a temporary file is left.
func TestMain(m *testing.M) {
	temp, err := os.MkdirTemp("", "aliyuntest")
	if err == nil {
		err = os.Setenv("TMPDIR", temp)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Which the first client would make otherwise, and then two at once: a race of the SDK.
	ecs.GetEndpointMap()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		left, err := os.ReadDir(temp)
		if err != nil || len(left) > 0 {
			fmt.Fprintln(os.Stderr, "left in the temporary directory:", left, err)
			code = max(code, 1)
		}
		_ = os.RemoveAll(temp)
		os.Exit(code)
	}))
}
