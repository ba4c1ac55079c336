package app

import (
	"context"
	"encoding/json"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/audit"
	"vmimport/internal/config"
	"vmimport/internal/tracing"
)

// auditStream writes the audit log into the log of the process, whatever its level, where its
// lines are told from others by "log":"audit".
type auditStream struct{ log zerolog.Logger }

// Add implements audit.Sink.
func (s auditStream) Add(r audit.Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return err
	}
	delete(fields, "time") // the log's own says the same
	s.log.Log().Str("log", "audit").Fields(fields).Send()
	return nil
}

// openAudit returns the API's audit log, and what closes it, which may be called in any case.
func openAudit(ac config.Audit, log zerolog.Logger) (sink audit.Sink, closeSink func() error, err error) {
	nothing := func() error { return nil }
	if ac.Path == "" {
		return auditStream{log}, nothing, nil
	}
	file, err := audit.OpenFile(ac.Path)
	if err != nil {
		return nil, nothing, err
	}
	return file, file.Close, nil
}

// tracingGrace is how long the last spans may take to be sent.
const tracingGrace = 5 * time.Second

// startTracing has the spans of the process sent where the configuration says, and returns what
// sends the last of them.
func startTracing(ctx context.Context, tc config.Tracing, service string, log zerolog.Logger) (stop func(), err error) {
	end, err := tracing.Start(ctx, tracing.Options{
		Endpoint: tc.Endpoint, Sample: tc.Sample, Service: service, Version: Version(), Instance: instance(),
		OnError: func(err error) { log.Warn().Err(err).Msg("traces are not sent") },
	})
	if err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracingGrace)
		defer cancel()
		if err := end(ctx); err != nil {
			log.Warn().Err(err).Msg("traces are not sent")
		}
	}, nil
}

// requestTracer makes the spans of requests; nil if nobody wants any.
func requestTracer(tc config.Tracing) trace.Tracer {
	if tc.Endpoint == "" {
		return nil
	}
	return otel.Tracer("vmimport/httpapi")
}
