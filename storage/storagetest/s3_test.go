package storagetest

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The example "GET Object" of the page that verify names.
func TestSignatureOfTheSpecification(t *testing.T) {
	t.Parallel()
	r, err := http.NewRequest(http.MethodGet, "https://examplebucket.s3.amazonaws.com/test.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=0-9")
	r.Header.Set("X-Amz-Content-Sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	r.Header.Set("X-Amz-Date", "20130524T000000Z")
	got := signature(r, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1",
		[]string{"host", "range", "x-amz-content-sha256", "x-amz-date"})
	if want := "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"; got != want {
		t.Errorf("signature = %s, want %s", got, want)
	}
}

func TestS3Refuses(t *testing.T) {
	t.Parallel()
	s := NewS3(t)
	s.Put("bucket", "key", []byte("content"))
	// sign fills r in as a client would.
	sign := func(r *http.Request, at time.Time, key, secret, region string) {
		r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		r.Header.Set("X-Amz-Date", at.UTC().Format(sigV4Time))
		signed := []string{"host", "x-amz-content-sha256", "x-amz-date"}
		r.Header.Set("Authorization", sigV4+" Credential="+key+"/"+at.UTC().Format("20060102")+"/"+region+"/s3/aws4_request, SignedHeaders="+
			strings.Join(signed, ";")+", Signature="+signature(r, secret, region, signed))
	}
	for code, change := range map[string]func(*http.Request){
		"":                             func(r *http.Request) { sign(r, time.Now(), s.AccessKey, s.SecretKey, s.Region) },
		"AccessDenied":                 func(*http.Request) {},
		"InvalidAccessKeyId":           func(r *http.Request) { sign(r, time.Now(), "other", s.SecretKey, s.Region) },
		"SignatureDoesNotMatch":        func(r *http.Request) { sign(r, time.Now(), s.AccessKey, "other", s.Region) },
		"AuthorizationHeaderMalformed": func(r *http.Request) { sign(r, time.Now(), s.AccessKey, s.SecretKey, "other") },
		"RequestTimeTooSkewed": func(r *http.Request) {
			sign(r, time.Now().Add(-time.Hour), s.AccessKey, s.SecretKey, s.Region)
		},
		"NoSuchKey": func(r *http.Request) {
			r.URL.Path += "/other"
			sign(r, time.Now(), s.AccessKey, s.SecretKey, s.Region)
		},
		"NoSuchBucket": func(r *http.Request) {
			r.URL.Path = "/other/key"
			sign(r, time.Now(), s.AccessKey, s.SecretKey, s.Region)
		},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/bucket/key", nil)
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		want := "<Error><Code>" + code + "</Code></Error>"
		if code == "" {
			want = "content"
		}
		if string(body) != want {
			t.Errorf("%d %s; want %s", resp.StatusCode, body, want)
		}
	}
}
