package redisstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

// waitFor bounds how long an answer waits for replicas. It is less than the client waits for
// Redis.
const waitFor = 2 * time.Second

// errNotReplicated is the answer to what was written, but could be lost in a failover.
var errNotReplicated = fault.New(fault.Unavailable, "not_replicated", "The request was not stored in enough places.").Try("Ask again in a moment.")

// keep is run for what a customer is promised.
func (s *Store) keep(ctx context.Context, script *redis.Script, keys []string, args ...any) (answer, error) {
	return s.runKept(ctx, script, keys, args...).Slice()
}

// secure is run for a step that a worker cannot take back, such as publishing, and what follows
// from it: it should outlive a failover. An import does not stop since a replica is away, though,
// so if they do not answer the step is done all the same.
func (s *Store) secure(ctx context.Context, script *redis.Script, keys []string, args ...any) (answer, error) {
	reply := s.runKept(ctx, script, keys, args...)
	if errors.Is(reply.Err(), errNotReplicated) {
		reply.SetErr(nil)
	}
	return reply.Slice()
}

// runKept runs a script whose answer is a promise: what the answer rests on, whether this or an
// earlier run has written it, is on Options.Replicas replicas before. If they do not say so
// within waitFor, the error is errNotReplicated.
func (s *Store) runKept(ctx context.Context, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	if s.opt.Replicas == 0 {
		return script.Run(ctx, s.rdb, keys, args...)
	}
	master, err := s.master(ctx, keys[0])
	if err != nil {
		reply := redis.NewCmd(ctx)
		reply.SetErr(err)
		return reply
	}
	reply := s.runAndWait(ctx, master, script, keys, args...)
	if addr, moved := redis.IsMovedError(reply.Err()); moved {
		if master := s.nodeAt(ctx, addr); master != nil {
			reply = s.runAndWait(ctx, master, script, keys, args...)
		}
	}
	return reply
}

// runAndWait has one connection carry the script and the wait, which is for what was written
// before it on the same connection or seen from it.
func (s *Store) runAndWait(ctx context.Context, master redis.Cmdable, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	var reply *redis.Cmd
	for _, eval := range []func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd{script.EvalSha, script.Eval} {
		var reached *redis.Cmd
		_, _ = master.Pipelined(ctx, func(p redis.Pipeliner) error { // each command has its own error
			reply = eval(ctx, p, keys, args...)
			reached = p.Do(ctx, "WAIT", s.opt.Replicas, waitFor.Milliseconds())
			return nil
		})
		switch {
		case redis.HasErrorPrefix(reply.Err(), "NOSCRIPT"):
			continue
		case reply.Err() != nil:
		default:
			if n, err := reached.Int(); err != nil {
				reply.SetErr(err)
			} else if n < s.opt.Replicas {
				reply.SetErr(errNotReplicated)
			}
		}
		break
	}
	return reply
}

// master returns a client whose connections lead to the server that key is written to.
func (s *Store) master(ctx context.Context, key string) (redis.Cmdable, error) {
	if c, ok := s.rdb.(*redis.ClusterClient); ok {
		return c.MasterForKey(ctx, key)
	}
	return s.rdb, nil
}

// nodeAt returns the client of a Cluster's node, nil if it is not known. To look for it is also
// to ask the Cluster anew where everything is.
func (s *Store) nodeAt(ctx context.Context, addr string) (found *redis.Client) {
	c, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return nil
	}
	var mu sync.Mutex
	_ = c.ForEachShard(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		if node.Options().Addr == addr {
			found = node
		}
		return nil
	})
	return found
}

// abandon cancels what Create made but must not promise, so that it does not run beside the task
// that is made when the customer asks again. With a client token it stays: the token leads the
// next request to it.
func (s *Store) abandon(ctx context.Context, spec *tasks.Spec, err error) {
	if !errors.Is(err, errNotReplicated) || spec.ClientToken != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitFor)
	defer cancel()
	opt := s.opt
	opt.Replicas = 0 // they do not answer
	// If this fails too, the customer has two tasks, as after any answer that was lost.
	_, _ = New(s.rdb, opt).Cancel(ctx, tasks.Scope{Region: spec.Region, Tenant: spec.Owner.Tenant, Kind: spec.Kind()}, spec.ID)
}
