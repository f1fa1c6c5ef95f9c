package main

import "fmt"

type report struct{}

func (r *report) add(row, what string, value float64) { fmt.Printf("%s\t%s\t%.4g\n", row, what, value) }
