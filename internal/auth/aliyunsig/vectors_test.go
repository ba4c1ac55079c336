package aliyunsig_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/secret"
)

// hard is a text of everything that encodings differ in.
const hard = "sp ace*~+&=%/漢"

// The first is the vendor's example. The others were made with its clients.
func TestRPCVectors(t *testing.T) {
	t.Parallel()
	regions := url.Values{
		"Action": {"DescribeRegions"}, "Format": {"XML"}, "Version": {"2014-05-26"}, "AccessKeyId": {"testid"},
		"SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"},
		"SignatureNonce": {"3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf"}, "Timestamp": {"2016-02-23T12:46:24Z"},
	}
	image := url.Values{
		"Action": {"ImportImage"}, "Format": {"JSON"}, "Version": {"2014-05-26"}, "AccessKeyId": {"testid"},
		"SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "SignatureType": {""},
		"SignatureNonce": {"n-1"}, "Timestamp": {"2026-01-02T03:04:05Z"}, "RegionId": {"cn-hangzhou"},
		"ImageName": {"a:b.c_d-e"}, "Description": {hard},
		"DiskDeviceMapping.1.OSSBucket": {"images"}, "DiskDeviceMapping.1.OSSObject": {"dir/disk 1.raw"},
	}
	for _, tt := range []struct {
		name, method string
		params       url.Values
		signature    string
	}{
		{"regions", "GET", regions, "OLeaidS1JvxuMvnyHOwuJ+uX5qY="},
		{"import by POST", "POST", image, "1TkLudiio/9GFUb5MZcpD0WUg6U="},
		{"import by GET", "GET", image, "6zjwEKwpRfziH2BDMfHKQJHQLT4="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			encoded := tt.params.Encode() + "&Signature=" + url.QueryEscape(tt.signature)
			verifyVector(t, newRequest(t, tt.method, encoded, ""), permanent.Secret)
			verifyVector(t, newRequest(t, tt.method, strings.ReplaceAll(encoded, "+", "%20"), ""), permanent.Secret)
			verifyVector(t, newRequest(t, tt.method, "", encoded), permanent.Secret)
		})
	}
}

func TestACS3Vectors(t *testing.T) {
	t.Parallel()
	t.Run("vendor's example", func(t *testing.T) {
		t.Parallel()
		req := newRequest(t, "POST", "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai", "")
		req.Host = "ecs.cn-shanghai.aliyuncs.com"
		for name, value := range map[string]string{
			"x-acs-action": "RunInstances", "x-acs-version": "2014-05-26", "x-acs-date": "2023-10-26T10:22:32Z",
			"x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
			"x-acs-content-sha256":  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			"Authorization": "ACS3-HMAC-SHA256 Credential=YourAccessKeyId," +
				"SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version," +
				"Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0",
		} {
			req.Header.Set(name, value)
		}
		verifyVector(t, req, "YourAccessKeySecret")

		// The string to sign is told to whom it does not help.
		q, err := receive(t, req)
		if err != nil {
			t.Fatal(err)
		}
		r := wantRefusal(t, knowing("another", q.Time).Verify(t.Context(), q, nil), 400, "SignatureDoesNotMatch")
		if !strings.HasSuffix(r.Message, "server string to sign is:ACS3-HMAC-SHA256\n7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259") {
			t.Errorf("message %q", r.Message)
		}
	})
	t.Run("query and form", func(t *testing.T) {
		t.Parallel()
		query := url.Values{"Description": {hard}, "Empty": {""}, "RegionId": {"cn-hangzhou"}}.Encode()
		req := newRequest(t, "POST", query, "ImageName=a%3Ab")
		req.Host = "127.0.0.1:8080"
		for name, value := range map[string]string{
			"x-acs-action": "DescribeImages", "x-acs-version": "2014-05-26", "x-acs-date": "2026-01-02T03:04:05Z",
			"x-acs-signature-nonce": "n-1", "x-acs-credentials-provider": "static_ak",
			"x-acs-content-sha256": "907c068fa389004c3853f181c1d8812bc56ffb7d149ee49f5b1b96e5103aeb84",
			"Authorization": "ACS3-HMAC-SHA256 Credential=testid," +
				"SignedHeaders=content-type;host;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version," +
				"Signature=63c0c7cb99c899fe8ac33406a215563f3b662b575dd2c114b04402b4796e7438",
		} {
			req.Header.Set(name, value)
		}
		q := verifyVector(t, req, permanent.Secret)
		if q.Action != "DescribeImages" || q.Host != "127.0.0.1:8080" || q.Params["Description"] != hard || q.Params["ImageName"] != "a:b" {
			t.Errorf("read as %+v", q)
		}
	})
}

// knowing returns a verifier for which every key has the secret.
func knowing(text string, at time.Time) *aliyunsig.Verifier {
	keys := func(string) (aliyunsig.Key, bool) { return aliyunsig.Key{Secret: secret.New(text)}, true }
	return aliyunsig.New(keys, &memory{}, func() time.Time { return at })
}

func verifyVector(t *testing.T, req *http.Request, text string) *aliyunsig.Request {
	t.Helper()
	q, err := receive(t, req)
	if err != nil {
		t.Fatal(err)
	}
	if err := knowing(text, q.Time).Verify(t.Context(), q, nil); err != nil {
		t.Error(err)
	}
	wantRefusal(t, knowing(text+"x", q.Time).Verify(t.Context(), q, nil), 400, "SignatureDoesNotMatch")
	return q
}
