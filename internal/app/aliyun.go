package app

import (
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"vmimport/internal/auth/aliyunsig"
	"vmimport/internal/auth/nonces"
	"vmimport/internal/auth/ram"
	"vmimport/internal/auth/ramfile"
	"vmimport/internal/config"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/tasks"
)

// newAliyun returns the dialect of all regions that have it, nil if none does.
func (p *parts) newAliyun(cfg *config.Config, service *tasks.Service, log zerolog.Logger) (httpapi.Dialect, error) {
	var regions []aliyun.Region
	for _, rc := range cfg.Regions {
		if rc.Aliyun != nil {
			regions = append(regions, aliyunRegion(rc))
		}
	}
	if len(regions) == 0 {
		return nil, nil
	}
	accounts, err := ramfile.Open(cfg.Aliyun.AccountsFile, ramfile.Options{
		OnError: func(err error) { log.Error().Err(err).Msg("accounts changed, but the change cannot be used") },
		OnReload: func(s ramfile.Summary) {
			log.Info().Int("accounts", s.Accounts).Int("keys", s.Keys).Msg("accounts changed")
		},
	})
	if err != nil {
		return nil, err
	}
	d, err := aliyun.New(service, aliyun.Options{
		Regions:           regions,
		Accounts:          accounts,
		Verifier:          aliyunsig.New(keysOf(accounts), nonces.New(p.rdb), time.Now),
		RequestsPerSecond: cfg.Aliyun.RequestsPerSecond,
		Burst:             cfg.Aliyun.Burst,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func aliyunRegion(rc config.Region) aliyun.Region {
	r := aliyun.Region{
		ID:           rc.ID,
		Endpoint:     rc.Aliyun.Endpoint,
		LocalNames:   rc.Aliyun.LocalNames,
		NoImports:    rc.Aliyun.NoImports,
		Formats:      rc.Aliyun.Formats,
		SystemDisk:   aliyun.Sizes(rc.Aliyun.SystemDisk),
		DataDisk:     aliyun.Sizes(rc.Aliyun.DataDisk),
		TargetFormat: rc.Images.TargetFormat,
	}
	if rc.Images.Glance != nil { // whose ids are UUIDs
		r.ImageID = func(string) string { return uuid.NewString() }
	}
	return r
}

// keysOf tells what a signature needs of a credential.
func keysOf(accounts ram.Directory) func(keyID string) (aliyunsig.Key, bool) {
	return func(keyID string) (aliyunsig.Key, bool) {
		c, ok := accounts.Credential(keyID)
		if !ok {
			return aliyunsig.Key{}, false
		}
		return aliyunsig.Key{Secret: c.Secret, Disabled: c.Disabled, SecurityToken: c.SecurityToken, Expires: c.Expires}, true
	}
}
