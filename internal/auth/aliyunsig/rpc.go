package aliyunsig

import (
	"maps"

	"vmimport/internal/secret"
)

// rpcRequired lists the parameters without which there is nothing to verify, in the order
// in which they are missed. Action and Version are missed by Verify.
var rpcRequired = []string{"Signature", "AccessKeyId", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp"}

// parseRPC reads the common parameters, version 1.0 of the signature.
func (q *Request) parseRPC() error {
	p := q.Params
	q.KeyID, q.SecurityToken, q.signature = p["AccessKeyId"], secret.New(p["SecurityToken"]), p["Signature"]
	for _, name := range rpcRequired {
		if p[name] == "" {
			return missing(name)
		}
	}
	switch {
	case p["SignatureMethod"] != "HMAC-SHA1":
		return misspelt("SignatureMethod")
	case p["SignatureVersion"] != "1.0":
		return misspelt("SignatureVersion")
	}
	// Generated clients send it empty. With BEARERTOKEN they would sign nothing.
	if p["SignatureType"] != "" {
		return invalid("SignatureType")
	}
	if err := q.setNonceAndTime("SignatureNonce", p["SignatureNonce"], p["Timestamp"]); err != nil {
		return err
	}
	signed := maps.Clone(p)
	delete(signed, "Signature")
	q.toSign = q.Method + "&%2F&" + encode(canonical(signed))
	return nil
}
