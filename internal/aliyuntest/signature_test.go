package aliyuntest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"

	"vmimport/internal/auth/aliyunsig/aliyunsigtest"
)

// Who may sign, and what the SDK makes of being refused.
func TestCredentials(t *testing.T) {
	t.Parallel()
	s := serve(t)
	key := func(id, secret string) auth.Credential { return credentials.NewAccessKeyCredential(id, secret) }
	session := func(id, secret, token string) auth.Credential {
		return credentials.NewStsTokenCredential(id, secret, token)
	}
	const good, gone = "blue-session", "blue-expired"
	for about, tt := range map[string]struct {
		credential auth.Credential
		want       string
	}{
		"good key":                {key("blue", secretOf("blue")), ""},
		"wrong secret":            {key("blue", secretOf("green")), "400 SignatureDoesNotMatch"},
		"unknown key":             {key("red", secretOf("red")), "404 InvalidAccessKeyId.NotFound"},
		"key in another case":     {key("Blue", secretOf("blue")), "404 InvalidAccessKeyId.NotFound"},
		"disabled key":            {key("blue-disabled", secretOf("blue-disabled")), "403 Forbidden.AccessKeyDisabled"},
		"good session":            {session(good, secretOf(good), tokenOf(good)), ""},
		"session, wrong secret":   {session(good, secretOf("blue"), tokenOf(good)), "400 SignatureDoesNotMatch"},
		"session, wrong token":    {session(good, secretOf(good), tokenOf(gone)), "400 InvalidSecurityToken.Malformed"},
		"session without token":   {key(good, secretOf(good)), "400 InvalidSecurityToken.Malformed"},
		"session that is over":    {session(gone, secretOf(gone), tokenOf(gone)), "400 InvalidSecurityToken.Expired"},
		"permanent key and token": {session("blue", secretOf("blue"), tokenOf(good)), "400 InvalidSecurityToken.Malformed"},
	} {
		for _, method := range []string{requests.POST, requests.GET} {
			r := ecs.CreateDescribeRegionsRequest()
			r.Method = method
			_, err := s.client(tt.credential, sdk.NewConfig()).DescribeRegions(r)
			if refusal(err) != tt.want {
				t.Errorf("%s with %s: %v, want %s", about, method, err, tt.want)
			}
		}
	}
}

// The SDK compares what it signed with what the service says that it should have signed.
// All that is hard to encode must come out the same, or it would blame itself.
func TestWrongSecretIsToldFromABug(t *testing.T) {
	t.Parallel()
	c := serve(t).client(credentials.NewAccessKeyCredential("blue", "wrong"), sdk.NewConfig())
	r := importRequest("a:b.c_d-e", "dir/disk 1.raw")
	r.Description = "sp ace*~+&=%/漢 !'()<>\"\n"
	_, err := c.ImportImage(r)
	refused, ok := err.(*sdkerrors.ServerError)
	if !ok || refusal(err) != "400 SignatureDoesNotMatch" || !strings.HasPrefix(refused.Recommend(), "InvalidAccessKeySecret") {
		t.Errorf("%v", err)
	}
}

// Parameters in the body, as the SDK's generic requests have them.
func TestFormBody(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.putHole("disk.raw", 1<<20)
	c := s.as("blue")
	r := requests.NewCommonRequest()
	r.Method, r.Domain, r.Version, r.ApiName, r.Scheme = requests.POST, s.host, "2014-05-26", "ImportImage", requests.HTTP
	r.FormParams = map[string]string{
		"ImageName": "web01", "Description": "sp ace*~+&=%/漢", "Empty": "",
		"DiskDeviceMapping.1.OSSBucket": bucket, "DiskDeviceMapping.1.OSSObject": "disk.raw",
	}
	r.QueryParams["Description"] = "the body's value wins"
	a, err := c.ProcessCommonRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	if c.wire.bodies != 1 {
		t.Error("the SDK sent no body, which this test is about")
	}
	var ids struct{ ImageId, TaskId, ImportTaskId string }
	if err := json.Unmarshal(a.GetHttpContentBytes(), &ids); err != nil || ids.TaskId == "" || ids.TaskId != ids.ImportTaskId {
		t.Fatalf("%s, %v", a.GetHttpContentString(), err)
	}
	if image := c.available(ids.ImageId); image.Description != "sp ace*~+&=%/漢" {
		t.Errorf("%+v", image)
	}
}

// A request is good once, and for a quarter of an hour.
func TestReplay(t *testing.T) {
	t.Parallel()
	s := serve(t)
	c := s.as("blue")
	c.images("")
	if got := s.send(c.wire.request); got != "400 SignatureNonceUsed" {
		t.Errorf("what the SDK sent, sent again: %s", got)
	}
	for about, tt := range map[string]struct {
		age  time.Duration
		want string
	}{
		"fresh": {0, "200 "}, "old": {14 * time.Minute, "200 "}, "too old": {16 * time.Minute, "400 InvalidTimeStamp.Expired"},
		"ahead": {-14 * time.Minute, "200 "}, "too far ahead": {-16 * time.Minute, "400 InvalidTimeStamp.Expired"},
	} {
		key := aliyunsigtest.Key{ID: "blue", Secret: secretOf("blue")}
		parameters := url.Values{"Action": {"DescribeRegions"}, "Version": {"2014-05-26"}, "Format": {"JSON"}}
		rpc := s.request(parameters)
		aliyunsigtest.SignRPC(t, rpc, key, "rpc "+about, time.Now().Add(-tt.age))
		acs3 := s.request(nil)
		aliyunsigtest.SignACS3(t, acs3, key, "DescribeRegions", "acs3 "+about, time.Now().Add(-tt.age))
		for _, r := range []*http.Request{rpc, acs3} {
			if got := s.send(r); got != tt.want {
				t.Errorf("%s: %s, want %s", about, got, tt.want)
			}
			if got := s.send(r); tt.want == "200 " && got != "400 SignatureNonceUsed" {
				t.Errorf("%s, again: %s", about, got)
			}
		}
		// One memory for both signatures: this nonce was the other's.
		if other := s.request(nil); tt.want == "200 " {
			aliyunsigtest.SignACS3(t, other, key, "DescribeRegions", "rpc "+about, time.Now())
			if got := s.send(other); got != "400 SignatureNonceUsed" {
				t.Errorf("%s, with the nonce of the other signature: %s", about, got)
			}
		}
		// Nonces are each key's own.
		green := s.request(parameters)
		aliyunsigtest.SignRPC(t, green, aliyunsigtest.Key{ID: "green", Secret: secretOf("green")}, "rpc "+about, time.Now())
		if got := s.send(green); got != "200 " {
			t.Errorf("%s, another key with that nonce: %s", about, got)
		}
	}
}

func (s *service) request(parameters url.Values) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.host+"/?"+parameters.Encode(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// send sends a request as it is, which has no body, and returns what refusal would.
func (s *service) send(r *http.Request) string {
	s.t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r.Clone(s.t.Context()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var body struct{ Code string }
	if err == nil {
		err = json.Unmarshal(b, &body)
	}
	if err != nil {
		s.t.Fatalf("%d %s: %v", resp.StatusCode, b, err)
	}
	return strings.Join([]string{strings.Fields(resp.Status)[0], body.Code}, " ")
}
