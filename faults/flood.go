package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// A flood is a process of endpoints that answer as they should not, on connections that the receivers hand over. In the
// world such endpoints have machines of their own. Here they share one with worker, PostgreSQL and the healthy endpoints, and
// what they write would be compared as if the worker had been slow: so they take what processor time is left and, where none
// is, a tenth of a share, and no thread of the healthy endpoints waits behind them.
type flood struct {
	process *exec.Cmd
	socket  *net.UnixConn
}

// floodPriority is a nice value with a tenth of the weight of others: at the lowest they starve on a busy machine, and all
// that a worker sees of them is its timeout.
const floodPriority = 10

// floodArgument makes of this binary the process of a flood.
const floodArgument = "flood"

func startFlood() (*flood, error) {
	syscall.ForkLock.RLock() // another process must not have them
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(pair[0])
		syscall.CloseOnExec(pair[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "flood"), os.NewFile(uintptr(pair[1]), "flood")
	defer theirs.Close() //nolint:errcheck // the process has it
	defer ours.Close()   //nolint:errcheck // copied
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), binary, floodArgument) //nolint:gosec // this one
	cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr = os.Stderr, []*os.File{theirs}, dieWithParent()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true // Linux shares out time among sessions first: it must not spend ours
	return &flood{cmd, conn.(*net.UnixConn)}, cmd.Start()
}

// openFlood has what answers as it should not done by a process of its own.
func (r *receivers) openFlood() (err error) {
	r.flood, err = startFlood()
	if err == nil {
		r.field.atEnd(r.flood.close)
	}
	return err
}

// take hands a connection over. The caller's own is to be closed, which ends nothing.
func (f *flood) take(conn net.Conn, m manner) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(descriptor uintptr) {
		_, _, sent = f.socket.WriteMsgUnix([]byte{byte(m)}, syscall.UnixRights(int(descriptor)), nil) //nolint:gosec // both are small
	})
	return errors.Join(err, sent)
}

// close ends the process, and with it its connections.
func (f *flood) close() {
	f.socket.Close() //nolint:errcheck // ours
	f.process.Wait() //nolint:errcheck // it ends by that
}

// runFlood is the process: until nobody hands over anything any more.
func runFlood(context.Context) error {
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, floodPriority); err != nil {
		return err
	}
	// The same for its session; where there is no such thing, the line above is enough.
	os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(floodPriority)), 0) //nolint:errcheck // as said
	conn, err := net.FileConn(os.NewFile(3, "flood"))
	if err != nil {
		return err
	}
	socket, kind, rights := conn.(*net.UnixConn), make([]byte, 1), make([]byte, syscall.CmsgSpace(4))
	for {
		n, size, _, _, err := socket.ReadMsgUnix(kind, rights)
		if n == 0 || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		taken, err := connectionOf(rights[:size])
		if err != nil {
			return err
		}
		go func(m manner) {
			defer taken.Close() //nolint:errcheck // that is the fault
			go answerHostile(taken, m)
			io.Copy(io.Discard, taken) //nolint:errcheck // until it ends
		}(manner(kind[0]))
	}
}

func connectionOf(rights []byte) (net.Conn, error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("a message without a connection")
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(descriptors[0]), "connection")
	defer file.Close() //nolint:errcheck // copied
	return net.FileConn(file)
}
