package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/propagation"

	"vmimport/tasks"
)

// cleanupSlots is how many clean-ups a worker does at a time, beside its imports.
const cleanupSlots = 2

// ServerOptions set up a Server.
type ServerOptions struct {
	// Concurrency is how many imports run at a time.
	Concurrency int
	// DrainTimeout bounds how long Run waits for attempts to end after they
	// were told to drain. It should be below the supervisor's time to kill.
	DrainTimeout time.Duration
	Log          zerolog.Logger
}

// Server takes imports from the queue and runs them.
type Server struct {
	imports  *asynq.Server
	cleanups *asynq.Server
	opt      ServerOptions
}

// NewServer returns a Server on rdb, which the caller closes after Run.
func NewServer(rdb redis.UniversalClient, opt ServerOptions) *Server {
	server := func(queue string, slots int) *asynq.Server {
		return asynq.NewServerFromRedisClient(rdb, asynq.Config{
			Concurrency:       slots,
			Queues:            map[string]int{queue: 1},
			TaskCheckInterval: 250 * time.Millisecond,
			ShutdownTimeout:   opt.DrainTimeout,
			Logger:            logAdapter{opt.Log},
			LogLevel:          asynq.WarnLevel,
		})
	}
	return &Server{imports: server(ImportQueue, opt.Concurrency), cleanups: server(CleanupQueue, cleanupSlots), opt: opt}
}

// Run takes imports until ctx ends. Then it takes no more, tells running
// attempts to drain (their context ends with tasks.ErrDraining), and returns
// when they have. The context of an attempt has the trace of its request.
func (s *Server) Run(ctx context.Context, handle tasks.Handler) error {
	drain, drained := context.WithCancelCause(context.WithoutCancel(ctx))
	defer drained(nil)
	handler := asynq.HandlerFunc(func(ctx context.Context, task *asynq.Task) error {
		return s.serve(ctx, drain, task, handle)
	})
	if err := s.imports.Start(handler); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	if err := s.cleanups.Start(handler); err != nil {
		s.imports.Shutdown()
		return fmt.Errorf("start worker: %w", err)
	}
	<-ctx.Done()
	// The order matters: asynq's own shutdown would hand tasks to other workers
	// while their attempts still run here, and an attempt that ends before Stop
	// makes room for another. But Stop may wait for a Redis that hangs.
	stopped := time.AfterFunc(stopPatience, func() { drained(tasks.ErrDraining) })
	s.both((*asynq.Server).Stop)
	stopped.Stop()
	drained(tasks.ErrDraining)
	s.both((*asynq.Server).Shutdown)
	return nil
}

// stopPatience is how long a drain waits for asynq to stop taking tasks.
const stopPatience = 2 * time.Second

// both does something to both servers at a time.
func (s *Server) both(do func(*asynq.Server)) {
	var wg sync.WaitGroup
	for _, server := range []*asynq.Server{s.imports, s.cleanups} {
		wg.Go(func() { do(server) })
	}
	wg.Wait()
}

// serve runs one task. Its verdict for asynq is for operators' eyes only: the
// record has the truth, and nothing is retried from here.
func (s *Server) serve(ctx, drain context.Context, task *asynq.Task, handle tasks.Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.opt.Log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("attempt panicked")
			err = fmt.Errorf("panic in attempt: %w", asynq.SkipRetry)
		}
	}()
	var ref tasks.Ref
	if err := json.Unmarshal(task.Payload(), &ref); err != nil {
		return fmt.Errorf("decode ticket: %w: %w", err, asynq.SkipRetry)
	}
	ctx, cancel := attemptContext(ctx, drain)
	defer cancel()
	// What is no trace leaves the context as it is.
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(task.Headers()))
	outcome, err := handle(ctx, ref)
	if err != nil {
		s.opt.Log.Error().Err(err).Str("import_id", string(ref.ID)).Msg("attempt left its record to the dispatcher")
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	if w := task.ResultWriter(); w != nil && outcome != "" && ctx.Err() == nil {
		// Shown by asynqmon, and of no other use: its loss is no failure.
		_, _ = w.Write([]byte(outcome))
	}
	return nil
}

// attemptContext joins asynq's context, which ends when asynq gave the task up
// as lost, and drain, which ends when the worker shuts down, and says which.
func attemptContext(task, drain context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(task))
	stopTask := context.AfterFunc(task, func() { cancel(tasks.ErrTaskLost) })
	stopDrain := context.AfterFunc(drain, func() { cancel(context.Cause(drain)) })
	return ctx, func() {
		stopTask()
		stopDrain()
		cancel(context.Canceled)
	}
}

// logAdapter writes asynq's own messages to the service's log.
type logAdapter struct{ log zerolog.Logger }

func (l logAdapter) Debug(args ...any) { l.write(zerolog.DebugLevel, args) }
func (l logAdapter) Info(args ...any)  { l.write(zerolog.InfoLevel, args) }
func (l logAdapter) Warn(args ...any)  { l.write(zerolog.WarnLevel, args) }
func (l logAdapter) Error(args ...any) { l.write(zerolog.ErrorLevel, args) }

// Fatal is how asynq reports an error it cannot go on from. It must not end the
// process over the head of imports that are running.
func (l logAdapter) Fatal(args ...any) { l.write(zerolog.ErrorLevel, args) }

func (l logAdapter) write(level zerolog.Level, args []any) {
	l.log.WithLevel(level).Str("component", "asynq").Msg(strings.TrimSpace(fmt.Sprint(args...)))
}
